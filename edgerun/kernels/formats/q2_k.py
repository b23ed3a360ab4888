"""Q2_K: d scale q - dmin min, sixteen parts of 16 with four bits of each."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.activations import MIN_SUMS_16
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class Q2_K(Super):
    """Field 1: a byte a part, scale low, minimum high. Field 2: of 128 columns 32 bytes, quarter by quarter from the
    bottom up."""

    type = GgmlType.Q2_K
    fields = (Field(80, 2, 2), Field(0, 4, 4), Field(16, 4, 16))
    parts, top = 16, 3
    scales = (0, 15)

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        half, quarter, first = part // 8, part // 2 % 4, part % 2 * 4
        return (
            (128 * half + 32 * quarter + 4 * t, e.field(self.words(e, q, 2, 8 * half + t), 2 * quarter, 3))
            for t in range(first, first + 4)
        )

    def d(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.byte_of(e.mask(self.words(e, q, 1, part // 4), 15), part % 4)

    def minima(self, e: Emitter, q: Value) -> tuple[Value, Sequence[tuple[Value, int]]]:
        pairs = []
        for word in range(4):
            packed = e.field(self.words(e, q, 1, word), 4, 15)
            for odd in range(2):
                pair = e.b.and_(e.b.lshr(packed, e.constant(8 * odd)), e.constant(0x00FF00FF))
                pairs.append((pair, MIN_SUMS_16 + 4 * (2 * word + odd)))
        return e.load_halves(q, self.offset(e, 0, 1)), pairs
