"""A backend computes in other arithmetic than one token at a time: still the same ids give the same logits to the byte,
whatever a session held before."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.engine.context import Context
from edgerun.engine.request import Request
from edgerun.engine.scheduler import Scheduler
from edgerun.engine.step import StepOptions
from edgerun.models.batch import Want
from edgerun.prefill.ladder import LADDER
from tests.prefill.making import attached, build, ort_backend, tokens

STEP = 64
CASES = [("llama", False, (0,)), ("gemma3", False, LADDER), ("qwen3moe", True, (0,)), ("qwen2moe", False, LADDER)]


class Greedy(Request[np.ndarray]):
    """Logits after the ids, and what follows greedily, one by one. `reused`: tokens that were held."""

    def __init__(self, context: Context, ids: list[int], more: int) -> None:
        super().__init__(context, ids, None)
        self.left = more
        self.reused = 0

    def begun(self, reused: int) -> None:
        self.reused = reused

    def stretch(self, start: int, most: int) -> tuple[int, Want]:
        n = min(most, len(self.ids) - start)
        return n, "last" if start + n == len(self.ids) else "none"

    def take(self, rows: np.ndarray | None, seconds: float) -> None:
        if rows is None:
            return
        self.results.put(rows)
        if self.left == 0:
            self.results.end()
            return
        self.left -= 1
        self.ids.append(int(rows[0].argmax()))

    def stop(self) -> None:
        raise AssertionError


def last_logits(scheduler: Scheduler, context: Context, ids: list[int], more: int = 0) -> tuple[np.ndarray, Greedy]:
    """After `ids`, and what follows greedily, one by one."""
    request = Greedy(context, ids, more)
    return np.concatenate(list(scheduler.run(request))), request


@pytest.mark.parametrize(("name", "experts", "sizes"), CASES)
def test_whatever_was_held(models, tmp_path, name, experts, sizes):
    model = models(name)
    built = build(model, tmp_path, "w8a8", sizes, experts=experts)
    with closing(ort_backend(model, built, least_tokens=16)) as backend, attached(backend, model.decoder):
        scheduler = Scheduler(model.decoder, StepOptions(STEP, fixed_steps=True))

        def fresh(reuse_steps: bool = True) -> Context:
            return Context(model.decoder, scheduler.lock, 600, step_tokens=STEP, reuse_steps=reuse_steps)

        def logits(context: Context, ids: list[int]) -> bytes:
            return last_logits(scheduler, context, ids)[0].tobytes()

        for length in (1, 9, 40, STEP, STEP + 1, 2 * STEP + 5, 3 * STEP + 40):
            held = fresh()
            first, said = last_logits(scheduler, held, tokens(length), more=5)
            again, _ = last_logits(scheduler, held, tokens(length), more=5)
            assert again.tobytes() == first.tobytes(), length
            turn = [*said.ids, *tokens(30, seed=8)]
            assert logits(held, turn) == logits(fresh(), turn), length
            again_said = last_logits(scheduler, held, turn)[1]
            assert again_said.reused == (len(turn) - 1) // STEP * STEP, "whole steps are used again"
        twin = held.fork()
        assert logits(twin, turn) == logits(held, turn)

        naive = fresh(reuse_steps=False)
        unknown = tokens(40, seed=9)  # to the other contexts, or what these have read would be taken over
        first = logits(naive, unknown)
        assert logits(naive, unknown) != first, "the case would show a difference"
