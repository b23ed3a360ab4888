"""Q4_1: d q + m."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Flat, Value


class Q4_1(Flat):
    """Codes as in Q4_0."""

    type = GgmlType.Q4_1
    fields = (Field(0, 2, 2), Field(4, 4, 4))
    parts, top = 1, 15

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return self.nibble_codes(e, q, 1, 0, 16)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, 0)

    def low(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, self.offset(e, 0, 1))
