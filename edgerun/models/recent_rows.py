"""The embeddings of the tokens that a text used last: texts repeat their words."""

from __future__ import annotations

from collections.abc import Callable

from edgerun.kernels.interface import F32


class RecentRows:
    """Rows (cols,) f32 of the last tokens asked for, as many as `most_bytes` hold; `make(token)` gives one anew.

    Reading a row from the file takes some 100 us, a twentieth of a small model's token.
    """

    def __init__(self, make: Callable[[int], F32], cols: int, most_bytes: int) -> None:
        self._make = make
        self._most = max(1, most_bytes // (4 * cols))
        self._rows: dict[int, F32] = {}  # the longest unused first

    def row(self, token: int) -> F32:
        """Of a token. Not to be written."""
        row = self._rows.pop(token, None)
        if row is None:
            row = self._make(token)
            if len(self._rows) >= self._most:
                del self._rows[next(iter(self._rows))]
        self._rows[token] = row
        return row
