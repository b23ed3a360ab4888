"""How many guesses a step takes along: as many as bring most tokens a second, which may be none.

SmartSpec (arXiv 2406.14066) calls that goodput: expected tokens of a step over its seconds. What a step of so many rows
takes is measured while it goes: where more rows cost more (many users at once, experts read from a disk), fewer guesses
are worth it. Where a wrong guess has rows computed again (recurrent states), so are these.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from edgerun.engine.drafts import Outlook

_LEAST_GAIN = 1.05  # over a step without guesses: what was measured is not exact
_ROW_SHARE = 0.2  # of a step of one row, that each further one is supposed to take until it was measured
_MEASURED = 9  # steps of a number of rows, of which the median counts
_FORGOTTEN = 256  # steps after which a number of rows that was not used has to be tried again
_MOST_DRAFTED = 32  # of all requests in a step


class Goodput:
    """Seconds of steps by their rows, and what follows from them."""

    def __init__(self) -> None:
        self._steps = 0
        self._measured: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}  # by rows: the step that had so many last
        self._known: list[tuple[int, float]] = []  # rows, seconds; ascending

    def saw(self, rows: int, seconds: float) -> None:
        """A step without a prompt took `seconds`. The first of a number of rows does not count: it was prepared."""
        self._steps += 1
        if rows not in self._last:
            self._last[rows] = self._steps
            return
        self._last[rows] = self._steps
        self._measured.setdefault(rows, deque(maxlen=_MEASURED)).append(seconds)
        for other in [each for each in self._measured if self._steps - self._last[each] > _FORGOTTEN]:
            del self._measured[other]
        self._known = sorted((each, median(some)) for each, some in self._measured.items())

    def seconds(self, rows: float) -> float:
        """That a step of so many rows takes, as far as anything is known."""
        below = [each for each in self._known if each[0] <= rows]
        above = [each for each in self._known if each[0] > rows]
        if below and above:
            (low, low_s), (high, high_s) = below[-1], above[0]
            return low_s + (high_s - low_s) * (rows - low) / (high - low)
        known, known_s = below[-1] if below else above[0]
        return known_s * _supposed(rows) / _supposed(known)

    def shares(self, rows: int, outlooks: Sequence[Outlook], token_s: float) -> list[int]:
        """How many guesses each of the requests with these outlooks makes, in a step of `rows` rows besides. token_s:
        that making one takes."""
        shares = [0] * len(outlooks)
        if not self._known:
            return shares
        likely = sorted(
            ((*guess, index) for index, each in enumerate(outlooks) for guess in each.likely()), reverse=True
        )[:_MOST_DRAFTED]
        step_s = self.seconds(rows)
        best, best_n, tokens, redone = _LEAST_GAIN * rows / step_s, 0, float(rows), 0.0
        for n, (probability, rows_again, _) in enumerate(likely, start=1):
            tokens += probability
            redone += rows_again
            again_s = self.seconds(rows + redone) - step_s  # they ride along in the next step
            goodput = tokens / (self.seconds(rows + n) + n * token_s + again_s)
            if goodput > best:
                best, best_n = goodput, n
        for _, _, index in likely[:best_n]:
            shares[index] += 1
        return shares


def _supposed(rows: float) -> float:
    return 1 + _ROW_SHARE * (rows - 1)
