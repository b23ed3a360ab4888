"""Drafters that are right or wrong on purpose, and steps that take along all that they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgerun.engine.chooser import Chooser
from edgerun.engine.context import Context
from edgerun.engine.drafts import MOST_DRAFTED, Draft, Drafter
from edgerun.engine.engine import MakeDrafter
from edgerun.engine.goodput import Goodput

Guess = Callable[[Sequence[int], int], Sequence[int]]
"""Tokens so far, how many guesses -> these."""


class Guesser(Drafter):
    """Says what `guess` does; `judged` are the drafts that went through a model."""

    def __init__(self, guess: Guess) -> None:
        super().__init__({0: 0.5})
        self.judged: list[Draft] = []
        self._guess = guess

    def _offered(self, ids: Sequence[int]) -> tuple[int, int]:
        return MOST_DRAFTED, 0

    def propose(self, ids: Sequence[int], n: int) -> Sequence[int]:
        return self._guess(ids, n)

    def learn(self, draft: Draft) -> None:
        super().learn(draft)
        self.judged.append(draft)


def guessing(guess: Guess, made: list[Guesser] | None = None) -> MakeDrafter:
    """For an engine."""

    def make(context: Context, chooser: Chooser) -> Guesser:
        guesser = Guesser(guess)
        if made is not None:
            made.append(guesser)
        return guesser

    return make


def from_script(answer: Sequence[int], n_prompt: int, right: Callable[[int], int], vocab: int) -> Guess:
    """Knows the answer; of the guesses for place i of it, the first `right(i)` are right, the others never."""

    def guess(ids: Sequence[int], n: int) -> Sequence[int]:
        start = len(ids) - n_prompt
        truth = [*answer[start : start + n], *[0] * n][:n]
        correct = right(start)
        return [token if i < correct else (token + 1) % vocab for i, token in enumerate(truth)]

    return guess


def always_wrong(truth: Callable[[Sequence[int]], int], vocab: int) -> Guess:
    """Guesses that no greedy choice is."""
    return lambda ids, n: [(truth(ids) + 1) % vocab] * n


def take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take along every guess that is on offer, whether it pays or not."""
    monkeypatch.setattr(Goodput, "shares", lambda self, rows, outlooks, token_s: [each.most for each in outlooks])


def some(seed: int) -> Callable[[int], int]:
    """A number of right guesses for each place: none, some or all."""
    numbers = np.random.default_rng(seed).integers(0, MOST_DRAFTED + 1, 4000)
    return lambda place: int(numbers[place])
