"""Requests small enough to be obviously right, and a clock that only steps move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgerun.engine.cancel import CancelSignal, FairLock
from edgerun.engine.context import Context
from edgerun.engine.mailbox import End
from edgerun.engine.request import Request
from edgerun.engine.step import StepOptions, Steps
from edgerun.models.batch import Batch, Want
from engine.fakes import FakeDecoder, LayeredDecoder


class Talk(Request[int]):
    """A prompt and `most` likeliest tokens after it. `reused`: tokens held at each beginning."""

    def __init__(self, context: Context, ids: Sequence[int], most: int, cancel: CancelSignal | None = None) -> None:
        super().__init__(context, ids, cancel)
        self.most = most
        self.reused: list[int] = []

    def begun(self, reused: int) -> None:
        self.reused.append(reused)

    def stretch(self, start: int, most: int) -> tuple[int, Want]:
        n = min(most, len(self.ids) - start)
        return n, "last" if start + n == len(self.ids) else "none"

    def take(self, rows: NDArray[np.float32] | None, seconds: float) -> None:
        if rows is not None:
            self.ids.append(int(rows[0].argmax()))
            self.results.put(self.ids[-1])
            if len(self.ids) - self.n_prompt == self.most:
                self.results.end()

    def stop(self) -> None:
        self.results.end()


@dataclass
class House:
    """Steps over a decoder whose every row takes `row_s`, and every step `step_s` besides."""

    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    options: StepOptions = field(default_factory=lambda: StepOptions(256))
    step_s: float = 0.02
    row_s: float = 0.002
    now_s: float = 0.0
    requests: list[Talk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = FairLock()
        self.steps = Steps(self.decoder, self.lock, self.options, clock=lambda: self.now_s)
        self.decoder.on_step = self._pass
        if isinstance(self.decoder, LayeredDecoder):
            self.decoder.on_wave = self._layer

    def _pass(self, batch: Batch) -> None:
        self.now_s += self.step_s + self.row_s * sum(len(each.ids) for each in batch.stretches)

    def _layer(self, rows: int) -> None:
        self.now_s += (self.step_s + self.row_s * rows) / 4

    def ask(self, prompt: Sequence[int], most: int, **more: CancelSignal) -> Talk:
        """A new request, the youngest."""
        context = Context(self.decoder, self.lock, 8000, step_tokens=self.options.step_tokens)
        talk = Talk(context, prompt, most, **more)
        talk.arrival = max([each.arrival for each in self.requests], default=0) + 1
        self.requests.append(talk)
        return talk

    def step(self) -> bool:
        """One step; whoever is over leaves after it."""
        made = self.steps.make(lambda: self.requests)
        self.decoder.pages.check_integrity()
        for talk in [each for each in self.requests if each.is_over]:
            self.requests.remove(talk)
            self.steps.n_ended += 1
            talk.context.release()
        return made

    def run(self, *, reading: bool = True, most: int = 10_000) -> None:
        """Steps until there is nothing to do."""
        for _ in range(most):
            made = self.step()
            for talk in self.requests if reading else ():
                read(talk)
            if not made and not self.requests:
                return
        raise AssertionError("steps have no end")


def read(talk: Talk) -> list[int]:
    """All that is in the mailbox now. Raises what the request failed with."""
    values = []
    while (item := talk.results.get(0)) is not None:
        if isinstance(item, End):
            if item.error is not None:
                raise item.error
            break
        values.append(item)
    return values


def expected(prompt: Sequence[int], most: int) -> list[int]:
    """What `Talk` says when nobody else is there."""
    ids = list(prompt)
    for _ in range(most):
        ids.append(int(FakeDecoder().row(ids).argmax()))
    return ids[len(prompt) :]
