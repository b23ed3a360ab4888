"""Q4_0: d (q - 8)."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Flat, Value


class Q4_0(Flat):
    """Byte i: weight i low, weight 16 + i high."""

    type = GgmlType.Q4_0
    fields = (Field(0, 2, 1), Field(2, 4, 4))
    parts, top, beyond = 1, 15, 8

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return self.nibble_codes(e, q, 1, 0, 16)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, 0)
