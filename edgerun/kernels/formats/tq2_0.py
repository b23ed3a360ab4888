"""TQ2_0: d (q - 1), one scale for 256 columns."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class Tq2_0(Super):
    """Of 128 columns 32 bytes, quarter by quarter from the bottom up. Codes come eightfold: see Q3_K."""

    type = GgmlType.TQ2_0
    fields = (Field(64, 2, 1), Field(0, 4, 16))
    parts, top, beyond = 1, 24, 8

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return (
            (128 * half + 32 * quarter + 4 * t, e.field(self.words(e, q, 1, 8 * half + t), 2 * quarter - 3, 24))
            for half in range(2)
            for t in range(8)
            for quarter in range(4)
        )

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))
