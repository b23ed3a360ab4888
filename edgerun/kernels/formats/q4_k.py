"""Q4_K and Q5_K: eight parts of 32 with 6-bit scales and minima below two halves."""

from __future__ import annotations

from collections.abc import Sequence

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.activations import MIN_SUMS_32
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class _SixBitScales(Super):
    """Field 0: d, dmin; field 1: twelve bytes of scales and minima: words a, b, c, of which c has the low bits of those
    of parts 4 to 7, and the top bits of a and b have their high ones; the last field: nibbles, of 64 columns the first
    32 low, the others high."""

    parts = 8

    def d(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        a, c = self.words(e, q, 1, 0), self.words(e, q, 1, 2)
        packed = e.mask(a, 63) if part < 4 else e.either(e.mask(c, 15), e.field(a, 2, 48))
        return e.byte_of(packed, part % 4)

    def minima(self, e: Emitter, q: Value) -> tuple[Value, Sequence[tuple[Value, int]]]:
        b, c = self.words(e, q, 1, 1), self.words(e, q, 1, 2)
        pairs: list[tuple[Value, int]] = []
        for packed in (e.mask(b, 63), e.either(e.field(c, 4, 15), e.field(b, 2, 48))):
            for shift in (0, 8):
                pairs.append((e.b.and_(e.b.lshr(packed, e.constant(shift)), e.constant(0x00FF00FF)), len(pairs)))
        return (
            e.load_halves(q, self.offset(e, 0, 1)),
            [(pair, MIN_SUMS_32 + 4 * index) for pair, index in pairs],
        )

    def four_bits(self, e: Emitter, q: Value, part: int) -> Codes:
        """The nibbles of a part."""
        for t in range(8):
            word = self.words(e, q, len(self.fields) - 1, part // 2 * 8 + t)
            yield 32 * part + 4 * t, e.field(word, 4 * (part % 2), 15)


class Q4_K(_SixBitScales):
    """d scale q - dmin min."""

    type = GgmlType.Q4_K
    fields = (Field(0, 2, 2), Field(4, 4, 3), Field(16, 4, 32))
    top = 15

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return self.four_bits(e, q, part)


class Q5_K(_SixBitScales):
    """As Q4_K; bit `part` of byte i of field 2 is the fifth of weight i of a part."""

    type = GgmlType.Q5_K
    fields = (Field(0, 2, 2), Field(4, 4, 3), Field(16, 4, 8), Field(48, 4, 32))
    top = 31

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return (
            (column, e.either(code, e.field(self.words(e, q, 2, t), part - 4, 16)))
            for t, (column, code) in enumerate(self.four_bits(e, q, part))
        )
