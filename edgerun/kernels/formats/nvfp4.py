"""NVFP4: E2M1 floats, sixteen under an E4M3 scale, four of these in a block of 64."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Flat, Value
from edgerun.kernels.formats.mxfp4 import TWICE_E2M1

_NO_NUMBER = 0x7F  # counts as 0; with a sign, which scales have not, it is taken for 480


class Nvfp4(Flat):
    """Field 0: a byte of scale a part. Field 1: two words a part; weight i low, weight 8 + i high. Values come 16
    greater, so that they are unsigned."""

    type = GgmlType.NVFP4
    fields = (Field(0, 1, 4), Field(4, 4, 8))
    parts, top, beyond = 4, 28, 16

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        values = [value + 16 for value in TWICE_E2M1]
        for t in range(2):
            word, column = self.words(e, q, 1, 2 * part + t), 16 * part + 4 * t
            yield column, e.table(e.mask(word, 15), values)
            yield column + 8, e.table(e.field(word, 4, 15), values)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        """Half of what E4M3 means, since the table is doubled; its sign is not looked at."""
        byte = e.load_u8(q, self.offset(e, 0, part))
        code = e.b.and_(byte, e.constant(0x7F))
        normal = e.b.bitcast(e.add(e.shl(code, 20), e.constant(119 << 23)), e.floats)
        small = e.fmul(e.to_floats(code), e.constant_float(2.0**-10))
        value = e.b.select(e.b.icmp_signed("<", code, e.constant(8)), small, normal)
        return e.b.select(e.b.icmp_signed("==", byte, e.constant(_NO_NUMBER)), e.constant_float(0.0), value)
