"""Q5_0 and Q5_1: five bits, the fifth of all 32 weights in a word of their own."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import TURNED_BITS, Codes, Emitter, Field, Flat, Value


class _FiveBits(Flat):
    """Field 1: fifth bits, turned; field 2: nibbles as in Q4_0."""

    parts, top = 1, 31

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        fifth = self.words(e, q, 1, 0)
        return (
            (column, e.either(code, e.field(fifth, column // 4 - 4, 16)))
            for column, code in self.nibble_codes(e, q, 2, 0, 16)
        )

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, 0)


class Q5_0(_FiveBits):
    """d (q - 16)."""

    type = GgmlType.Q5_0
    fields = (Field(0, 2, 1), Field(2, 4, 1, TURNED_BITS), Field(6, 4, 4))
    beyond = 16


class Q5_1(_FiveBits):
    """d q + m."""

    type = GgmlType.Q5_1
    fields = (Field(0, 2, 2), Field(4, 4, 1, TURNED_BITS), Field(8, 4, 4))

    def low(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, self.offset(e, 0, 1))
