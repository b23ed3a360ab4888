"""IQ1_M: as IQ1_S, with sixteen parts of 16 and a delta for every eight columns.

8 t + 8 + delta + 1 is the code, so a part's minimum is 9 (2 scale + 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.activations import MIN_SUMS_16
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import GridCodes
from edgerun.kernels.formats.iq1_s import TERNARY


class Iq1M(GridCodes):
    """Field 0: low bytes of codes; 1: of each code a nibble, three high bits and delta's sign; 2: of four parts a half
    word of scales, three bits each, with four bits of the f16 d on top."""

    type = GgmlType.IQ1_M
    fields = (Field(0, 4, 8), Field(32, 4, 4), Field(48, 4, 2))
    parts, top = 16, 18
    grid, letters = grids.IQ1, TERNARY

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        return [(self.words(e, q, 0, piece), e.mask(self._nibbles(e, q, piece), 7))]

    def finished(self, e: Emitter, q: Value, piece: int, half: int, letters: list[Value]) -> list[Any]:
        upward = e.b.xor(e.field(self._nibbles(e, q, piece), 2, 2), e.constant(0x02020202))  # delta + 1
        return [e.either(each, delta) for each, delta in zip(letters, e.by_code(self.table, upward, half), strict=True)]

    def _nibbles(self, e: Emitter, q: Value, piece: int) -> Value:
        places = [16 * (piece % 2) + 4 * code for code in range(4)]
        return e.once((q, "nibbles", piece), lambda: e.byte_fields(self.words(e, q, 1, piece // 2), places, 15))

    def d(self, e: Emitter, q: Value) -> Value:
        bits: Value | None = None
        for word in range(2):
            packed = self.words(e, q, 2, word)
            for half in range(2):
                place = 4 * (2 * word + half)
                moved = e.b.lshr(packed, e.constant(12 + 16 * half - place))
                nibble = e.b.and_(moved, e.constant(15 << place))
                bits = nibble if bits is None else e.either(bits, nibble)
        return e.fmul(e.halves_of(bits), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 2, part // 8), 16 * (part // 4 % 2) + 3 * (part % 4), 3)

    def minima(self, e: Emitter, q: Value) -> tuple[Value, Sequence[tuple[Value, int]]]:
        pairs = []
        for four in range(4):
            packed = e.b.lshr(self.words(e, q, 2, four // 2), e.constant(16 * (four % 2)))
            for odd in range(2):
                low = e.b.and_(e.b.lshr(packed, e.constant(3 * odd)), e.constant(7))
                high = e.b.and_(e.shl(packed, 10 - 3 * odd), e.constant(7 << 16))
                scale = e.b.bitcast(e.either(low, high), e.pairs)
                nine = e.b.bitcast(e.constant(0x00090009), e.pairs)
                eighteen = e.b.bitcast(e.constant(0x00120012), e.pairs)
                pairs.append((e.b.add(e.b.mul(scale, eighteen), nine), MIN_SUMS_16 + 4 * (2 * four + odd)))
        return self.d(e, q), pairs
