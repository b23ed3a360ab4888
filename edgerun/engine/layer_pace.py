"""How many rows of prompts go through the layers together, and how many layers of them are computed between two tokens
of those who wait for theirs."""

from __future__ import annotations

from collections.abc import Callable

_SHARE = 0.92  # of the bound that is aimed at: layers differ
_FIRST_ROWS = 16  # before anything is known
_MOST_ROWS = 128  # more are hardly faster, and whoever comes next waits until all of them are through
_LAYERS = 3  # of a wave at least between two tokens, so that the time until then is used well
_WEIGHT = 0.3  # of the newest measurement


class LayerPace:
    """Seconds that a layer takes for each row, and when tokens are due. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._row_s = 0.0  # of a layer
        self._turn_s = 0.0  # between tokens, for layers
        self._due_s = 0.0  # by the clock
        self._layer_s = 0.0  # of the wave that is computed now

    def wait_until(self, tokens_s: float, bound_s: float, base_s: float) -> None:
        """The last tokens came at `tokens_s` by the clock and shall come again `bound_s` later, which takes `base_s`.
        Where tokens alone take that long, as much time again is left."""
        now = self._clock()
        self._turn_s = max(_SHARE * bound_s - base_s, base_s)
        self._due_s = max(tokens_s + self._turn_s, now + base_s)

    def rows(self) -> int:
        """Of prompts, that shall go through the layers together."""
        if self._row_s <= 0:
            return _FIRST_ROWS
        return max(_FIRST_ROWS, min(_MOST_ROWS, int(self._turn_s / _LAYERS / self._row_s)))

    def pause(self, rows: int) -> Callable[[], bool]:
        """For a wave of so many rows that begins to be computed now: whether the next layer would end too late. To be
        asked after every layer."""
        before, self._layer_s = self._clock(), 0.0

        def too_late() -> bool:
            nonlocal before
            now = self._clock()
            took, before = now - before, now
            self._layer_s = max(self._layer_s, took)
            self._row_s += (_WEIGHT if self._row_s else 1.0) * (took / rows - self._row_s)
            return now + self._layer_s > self._due_s

        return too_late

    @property
    def is_due(self) -> bool:
        """Whether another layer as the last ones would end too late."""
        return self._clock() + self._layer_s > self._due_s
