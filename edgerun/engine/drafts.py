"""Guesses of what follows: a step reads several tokens at the price of little more than one, if they are known before.

The model's choice at every place is made as without guesses, from the same logits with the same random number; a guess
is right when it is what was chosen. So an answer does not depend on who guessed what: the probability that a guess t is
right is p(t), and one that is wrong leaves p without t, which is what rejection sampling (arXiv 2211.17192, 2302.01318)
gives for guesses that are certain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_DRAFTED = 7  # of one request: with the last token before them 8 rows, which have the bits of rows one by one
_PRIOR_WEIGHT = 1.5  # guesses, for which what was supposed beforehand counts
_KEPT = 0.85  # of what was seen, after each draft
_KEPT_UNUSED = 0.98  # and after each step for which no guess seemed worth it: then it is tried again some day


@dataclass
class Draft:
    """Guesses that go through the model after a sequence's last token. kind: of the guesser's kinds.

    accepted: how many of them, the first ones, turned out right; set before anybody can see what they say."""

    ids: Sequence[int]
    kind: int = 0
    accepted: int = 0


class Outlook(NamedTuple):
    """most: guesses that could be made now. rate: how likely each is right after one that was. is_redone: after a wrong
    one the rows before it are computed again, for recurrent states are kept of the step's beginning alone."""

    most: int
    rate: float
    is_redone: bool = False

    def likely(self) -> list[tuple[float, float]]:
        """Of each guess that could be made: how likely it counts, and how many rows it is expected to have computed
        again, because it is wrong."""
        redone = [self.rate**i * (1 - self.rate) * (1 + i) if self.is_redone else 0.0 for i in range(self.most)]
        return [(self.rate ** (i + 1), each) for i, each in enumerate(redone)]


class Drafter(ABC):
    """Guesses for one request. `ids` is its list of tokens, which grows; where it was replaced, it is another list."""

    def __init__(self, priors: Mapping[int, float]) -> None:
        self._priors = priors
        self._seen: dict[int, tuple[float, float]] = {}  # by kind: right ones, all that were decided
        self.kind = 0  # of what was offered last

    @property
    def token_s(self) -> float:
        """Seconds that one guess takes."""
        return 0.0

    @abstractmethod
    def _offered(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many guesses there could be after `ids`, and of which kind."""

    @abstractmethod
    def propose(self, ids: Sequence[int], n: int) -> Sequence[int]:
        """At most `n` guesses, after `outlook` for the same ids."""

    def outlook(self, ids: Sequence[int], most: int) -> Outlook:
        """What could be guessed after `ids`, at most so many."""
        offered, self.kind = self._offered(ids)
        hits, tries = self._seen.get(self.kind, (0.0, 0.0))
        rate = (hits + _PRIOR_WEIGHT * self._priors[self.kind]) / (tries + _PRIOR_WEIGHT)
        return Outlook(min(offered, most, MOST_DRAFTED), rate)

    def learn(self, draft: Draft) -> None:
        """It is known which of its guesses were right. Those after the first wrong one were not decided."""
        hits, tries = self._seen.get(draft.kind, (0.0, 0.0))
        decided = min(draft.accepted + 1, len(draft.ids))
        self._seen[draft.kind] = (_KEPT * hits + draft.accepted, _KEPT * tries + decided)

    def skipped(self) -> None:
        """Guesses were on offer, and none seemed worth it."""
        hits, tries = self._seen.get(self.kind, (0.0, 0.0))
        self._seen[self.kind] = (_KEPT_UNUSED * hits, _KEPT_UNUSED * tries)
