"""Q1_0: d or -d, 128 weights under one scale."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import TURNED_BITS, Codes, Emitter, Field, Flat, Value


class Q1_0(Flat):
    """A bit a weight, turned. Codes are 0 and 16, of which 8 is taken off; d is divided by eight."""

    type = GgmlType.Q1_0
    fields = (Field(0, 2, 1), Field(2, 4, 4, TURNED_BITS))
    parts, top, beyond = 4, 16, 8

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        bits = self.words(e, q, 1, part)
        return ((32 * part + 4 * t, e.field(bits, t - 4, 16)) for t in range(8))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))
