"""Q3_K: d (scale - 32) (q - 4), sixteen parts of 16."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class Q3_K(Super):
    """Field 1: twelve bytes of 6-bit scales. Field 2: third bits, bit 4 half + quarter of byte i. Field 3: low bits as
    in Q2_K. Codes come eightfold, so that 4 becomes the 32 whose sums stand ready; d is divided by as much."""

    type = GgmlType.Q3_K
    fields = (Field(108, 2, 1), Field(96, 4, 3), Field(0, 4, 8), Field(32, 4, 16))
    parts, top, beyond = 16, 56, 32

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        half, quarter, first = part // 8, part // 2 % 4, part % 2 * 4
        for t in range(first, first + 4):
            low = e.field(self.words(e, q, 3, 8 * half + t), 2 * quarter - 3, 24)
            third = e.field(self.words(e, q, 2, t), 4 * half + quarter - 5, 32)
            yield 128 * half + 32 * quarter + 4 * t, e.either(low, third)

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        low, high = self.words(e, q, 1, part // 4 % 2), self.words(e, q, 1, 2)
        packed = e.either(e.field(low, 4 * (part // 8), 15), e.field(high, 2 * (part // 4) - 4, 48))
        return e.sub(e.byte_of(packed, part % 4), e.constant(32))
