"""IQ4_XS: IQ4_NL's values below 6-bit scales, eight parts of 32."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value
from edgerun.kernels.formats.iq4_nl import VALUES


class Iq4Xs(Super):
    """d (scale - 32) value. Field 0: d; field 1: two high bits of each scale; field 2: four low ones."""

    type = GgmlType.IQ4_XS
    fields = (Field(0, 2, 1), Field(2, 2, 1), Field(4, 4, 1), Field(8, 4, 32))
    parts, top = 8, 0

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        for t in range(4):
            word, column = self.words(e, q, 3, 4 * part + t), 32 * part + 4 * t
            yield column, e.table_codes(e.mask(word, 15), VALUES)
            yield column + 16, e.table_codes(e.field(word, 4, 15), VALUES)

    def d(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        high = e.load_u16(q, self.offset(e, 1))
        low = e.b.and_(e.b.lshr(self.words(e, q, 2, 0), e.constant(4 * part)), e.constant(15))
        top = e.shl(e.b.and_(e.b.lshr(high, e.constant(2 * part)), e.constant(3)), 4)
        return e.sub(e.either(low, top), e.constant(32))
