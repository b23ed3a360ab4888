"""Prompt lookup: what followed these tokens before, in the prompt or in the answer, may follow them again.

After github.com/apoorvumang/prompt-lookup-decoding, with an index of pairs in place of a search, and the longest match
before the latest one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from edgerun.engine.chooser import Chooser
from edgerun.engine.context import Context
from edgerun.engine.drafts import MOST_DRAFTED, Drafter

_MOST_PLACES = 16  # of a pair that are looked at, the latest ones
_LONGEST = 12  # tokens that are compared; a longer match says no more
_LENGTHS = (3, 4, 6, 9)  # matches of 2, 3, 4 to 5, 6 to 8, and of 9 tokens or more are kinds of their own
_PRIORS = {0: 0.25, 1: 0.4, 2: 0.55, 3: 0.7, 4: 0.85}


def lookup(context: Context, chooser: Chooser) -> Lookup:
    """For one request: neither its pages nor its choices matter."""
    return Lookup()


class Lookup(Drafter):
    """Of one request. Guesses cost nothing."""

    def __init__(self) -> None:
        super().__init__(_PRIORS)
        self._ids: Sequence[int] = ()  # that are indexed, as far as:
        self._n_indexed = 0
        self._places: dict[tuple[int, int], list[int]] = {}  # where a pair was followed by something: that position
        self._found = 0  # the position whose tokens are the guesses

    def _offered(self, ids: Sequence[int]) -> tuple[int, int]:
        self._index(ids)
        n = len(ids)
        places = self._places.get((ids[-2], ids[-1]), []) if n > 2 else []
        longest = 0
        for place in reversed(places[-_MOST_PLACES:]):
            length = 2
            while length < _LONGEST and length < place and ids[place - length - 1] == ids[n - length - 1]:
                length += 1
            if length > longest:
                longest, self._found = length, place
                if longest == _LONGEST:
                    break
        return (MOST_DRAFTED, bisect_right(_LENGTHS, longest)) if longest else (0, 0)

    def propose(self, ids: Sequence[int], n: int) -> Sequence[int]:
        """See `Drafter`. What repeats itself up to the end goes on repeating itself."""
        period = len(ids) - self._found
        return [ids[self._found + i % period] for i in range(n)]

    def _index(self, ids: Sequence[int]) -> None:
        if ids is not self._ids:
            self._ids, self._n_indexed = ids, 2
            self._places.clear()
        for place in range(self._n_indexed, len(ids)):
            self._places.setdefault((ids[place - 2], ids[place - 1]), []).append(place)
        self._n_indexed = max(self._n_indexed, len(ids))
