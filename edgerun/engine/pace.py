"""How many rows of a prompt may ride along, so that those who wait for their next token get it in time.

Sarathi-Serve (arXiv 2403.02310): tokens of running answers go first, and a prompt gets what is left of the time that
they may take. Its budget is a number of tokens found beforehand; here it follows from what steps took so far.
"""

from __future__ import annotations

_FIRST_ROWS = 16  # before anything is known
_LEAST_ROWS = 4  # fewer are not faster by much
_SHARE = 0.85  # of the bound that is aimed at: steps differ
_WEIGHT = 0.3  # of the newest measurement


class Pace:
    """Seconds of a step without a prompt, and how many a row of a prompt adds."""

    def __init__(self) -> None:
        self._base_s = 0.0
        self._row_s = 0.0
        self._last_rows = 0

    def saw(self, decode_rows: int, prompt_rows: int, seconds: float) -> None:
        """A step took `seconds`."""
        if prompt_rows == 0:
            self._base_s = _moved(self._base_s, seconds)
            return
        beyond = seconds - (self._base_s if decode_rows else 0.0)
        # Slower at once, faster by and by: a bound that is broken is worse than one that is not used up.
        self._row_s = max(beyond / prompt_rows, _moved(self._row_s, max(0.0, beyond) / prompt_rows))
        if decode_rows:
            self._last_rows = prompt_rows

    @property
    def base_s(self) -> float:
        """Of a step without a prompt, as far as one was seen."""
        return self._base_s

    def rows(self, bound_s: float, decode_rows: int, most: int) -> int:
        """Of prompts in a step that shall take `bound_s`, with as many next tokens in it; where these alone take that
        long, as much time again."""
        if self._row_s <= 0:
            return min(_FIRST_ROWS, most)
        base_s = self._base_s or decode_rows * self._row_s
        left_s = max(_SHARE * bound_s - base_s, base_s)
        rows = int(left_s / self._row_s)
        grown = max(_FIRST_ROWS, 2 * self._last_rows) if self._last_rows else rows
        return max(1, min(max(rows, _LEAST_ROWS), grown, most))


def _moved(known: float, seen: float) -> float:
    return known + _WEIGHT * (seen - known) if known else seen
