"""What IQ1, IQ2 and IQ3 share: codes that look up four or eight weights in a grid, by pieces of 32 columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Codes, Emitter, Super, Value
from edgerun.kernels.formats.lookup import Lookup

if TYPE_CHECKING:
    from edgerun.kernels.ops.lookups import Looked

SEVENS = (0, 7, 14, 21)  # where the signs of four groups begin, in a word with a scale on top


@cache
def lookup(grid: grids.Grid, letters: tuple[int, ...] | None) -> Lookup:
    """The grid's table: magnitudes, whose signs stand apart, or other `letters` in the place of its own."""
    numbers = np.searchsorted(np.array(grid.letters), grids.words(grid)).astype(np.uint8)
    return Lookup(numbers, letters or grid.letters, signed=letters is None)


class GridCodes(Super):
    """Eight parts of 32 columns or sixteen of 16."""

    grid: ClassVar[grids.Grid]
    letters: ClassVar[tuple[int, ...] | None] = None

    @property
    def table(self) -> Lookup:
        """The grid as it is looked up, with `letters` for its own, if there are any."""
        return lookup(self.grid, self.letters)

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        """What `Emitter.look_up` takes: four codes of eight weights, or twice four of four."""
        raise NotImplementedError

    def finished(self, e: Emitter, q: Value, piece: int, half: int, letters: list[Value]) -> list[Any]:
        """The letters of half a piece, vector by vector, as `Chain.step` takes them."""
        raise NotImplementedError

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        piece, halves = (part, (0, 1)) if self.parts == 8 else (part // 2, (part % 2,))
        found = e.once((q, "letters", piece), lambda: self._looked_up(e, q, piece))
        for half in halves:
            letters = found[half].half(0) if len(found) == 2 else found[0].half(half)
            for k, code in enumerate(self.finished(e, q, piece, half, letters)):
                yield 32 * piece + 16 * half + 4 * k, code

    def _looked_up(self, e: Emitter, q: Value, piece: int) -> list[Looked]:
        return [e.look_up(self.table, low, high) for low, high in self.numbers(e, q, piece)]

    def spread(self, e: Emitter, x: Value, column: int) -> Value:
        return e.spread_grid(self.table, x, column)

    def columns(self, e: Emitter, column: int) -> Sequence[int]:
        return e.grid_columns(self.table, column)

    def odd(self, e: Emitter, word: Value, shift: int, bits: int) -> Value:
        """2 n + 1 of the `bits` bits n at `shift` of every lane, i32."""
        moved = e.b.lshr(word, e.constant(shift - 1)) if shift else e.shl(word, 1)
        return e.either(e.b.and_(moved, e.constant(2 * ((1 << bits) - 1))), e.constant(1))


class SignedGrid(GridCodes):
    """Magnitudes from the grid, a sign for every weight."""

    top = 0

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        """Bit c of a lane: column c of the piece is negative."""
        raise NotImplementedError

    def finished(self, e: Emitter, q: Value, piece: int, half: int, letters: list[Value]) -> list[Any]:
        signs = e.once((q, "signs", piece), lambda: self.signs(e, q, piece))
        pairs = zip(letters, e.negatives(self.table, signs, half), strict=True)
        return [e.with_signs(word, negative) for word, negative in pairs]
