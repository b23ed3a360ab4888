"""A text that is read, not answered: the logits or the hidden states of all its positions."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.engine.cancel import CancelSignal
from edgerun.engine.context import F32, Context
from edgerun.engine.request import Request
from edgerun.errors import Cancelled
from edgerun.models.batch import Want


class Reading(Request[F32]):
    """Results are rows (T, vocab) or (T, d) of consecutive positions; `most_rows` of them at a time at most."""

    def __init__(
        self, context: Context, ids: Sequence[int], cancel: CancelSignal | None, want: Want, most_rows: int
    ) -> None:
        super().__init__(context, ids, cancel)
        self._want = want
        self._most_rows = most_rows
        self._n_given = 0  # positions whose rows were put

    @property
    def most_reused(self) -> int:
        """See `Request`. What comes out is wanted of every id, but of those that were given already."""
        return self._n_given

    def begun(self, reused: int) -> None:
        """See `Request`."""

    def stretch(self, start: int, most: int) -> tuple[int, Want]:
        """See `Request`. What was given before its pages were taken away is not given twice."""
        if start < self._n_given:
            return min(most, self._n_given - start), "none"
        return min(most, self._most_rows, len(self.ids) - start), self._want

    def take(self, rows: F32 | None, seconds: float) -> None:
        """See `Request`."""
        if rows is None:
            return
        self._n_given += len(rows)
        self.results.put(rows)
        if self._n_given == len(self.ids):
            self.results.end()

    def stop(self) -> None:
        """See `Request`."""
        self.fail(Cancelled("cancelled"))
