"""A backend computes in other arithmetic than one token at a time: still the same ids give the same logits to the byte,
whatever a session held before."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.engine.cancel import FairLock
from edgerun.engine.context import Context
from edgerun.prefill.ladder import LADDER
from tests.prefill.making import attached, build, ort_backend, tokens

STEP = 64
CASES = [("llama", False, (0,)), ("gemma3", False, LADDER), ("qwen3moe", True, (0,)), ("qwen2moe", False, LADDER)]


def last_logits(context: Context, ids: list[int], more: int = 0) -> tuple[np.ndarray, list[int]]:
    """After `ids`, and what follows greedily, one by one."""
    n, ticket = context.begin(ids)
    ids, rows = list(ids), [context.feed(ids[n:], ticket)]
    for _ in range(more):
        ids.append(int(rows[-1][0].argmax()))
        rows.append(context.feed(ids[-1:], ticket))
    return np.concatenate(rows), ids


@pytest.mark.parametrize(("name", "experts", "sizes"), CASES)
def test_whatever_was_held(models, tmp_path, name, experts, sizes):
    model = models(name)
    built = build(model, tmp_path, "w8a8", sizes, experts=experts)
    with closing(ort_backend(model, built, least_tokens=16)) as backend, attached(backend, model.decoder):

        def fresh(reuse_steps: bool = True) -> Context:
            return Context(model.decoder, FairLock(), 600, step_tokens=STEP, reuse_steps=reuse_steps)

        for length in (1, 9, 40, STEP, STEP + 1, 2 * STEP + 5, 3 * STEP + 40):
            held = fresh()
            first, said = last_logits(held, tokens(length), more=5)
            again, _ = last_logits(held, tokens(length), more=5)
            assert again.tobytes() == first.tobytes(), length
            turn = [*said, *tokens(30, seed=8)]
            assert last_logits(held, turn)[0].tobytes() == last_logits(fresh(), turn)[0].tobytes(), length
            assert held.begin(turn)[0] == (len(turn) - 1) // STEP * STEP, "whole steps are used again"
        twin = held.fork()
        assert last_logits(twin, turn)[0].tobytes() == last_logits(held, turn)[0].tobytes()

        naive = fresh(reuse_steps=False)
        first, _ = last_logits(naive, tokens(40))
        assert last_logits(naive, tokens(40))[0].tobytes() != first.tobytes(), "the case would show a difference"
