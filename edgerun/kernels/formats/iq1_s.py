"""IQ1_S: d / 8 (2 scale + 1) (8 t + delta) with ternary t and delta = 1 or -1, eight parts of 32.

8 t + 8 is the code, so a part's minimum is (2 scale + 1) (8 - delta)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.activations import MIN_SUMS_32
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import GridCodes

TERNARY = (0, 8, 16)


class Iq1S(GridCodes):
    """Field 1: low bytes of codes. Field 2: sixteen bits a part, four times three high bits, scale, delta's sign."""

    type = GgmlType.IQ1_S
    fields = (Field(0, 2, 1), Field(2, 4, 8), Field(34, 4, 4))
    parts, top = 8, 16
    scales = (1, 15)
    grid, letters = grids.IQ1, TERNARY

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        places = [16 * (piece % 2) + 3 * code for code in range(4)]
        return [(self.words(e, q, 1, piece), e.byte_fields(self.words(e, q, 2, piece // 2), places, 7))]

    def finished(self, e: Emitter, q: Value, piece: int, half: int, letters: list[Value]) -> list[Any]:
        return letters

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 2, part // 2), 12 + 16 * (part % 2), 3)

    def minima(self, e: Emitter, q: Value) -> tuple[Value, Sequence[tuple[Value, int]]]:
        pairs = []
        for word in range(2):
            first, second = self.words(e, q, 2, 2 * word), self.words(e, q, 2, 2 * word + 1)
            for odd, places in enumerate(((0, 1, 4, 5), (2, 3, 6, 7))):
                both = e.pick_bytes(first, second, places)
                scale = e.either(
                    e.b.and_(e.b.lshr(both, e.constant(11)), e.constant(0x000E000E)), e.constant(0x00010001)
                )
                negative = e.b.and_(e.b.lshr(both, e.constant(14)), e.constant(0x00020002))
                factor = e.b.bitcast(e.add(negative, e.constant(0x00070007)), e.pairs)
                pairs.append((e.b.mul(e.b.bitcast(scale, e.pairs), factor), MIN_SUMS_32 + 4 * (2 * word + odd)))
        return self.d(e, q), pairs
