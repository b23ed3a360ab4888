"""Q6_K: d scale (q - 32), sixteen parts of 16."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Super, Value


class Q6_K(Super):
    """Of 128 columns, the four quarters' low four bits stand in 64 bytes: quarters 0 and 1 low, 2 and 3 high; their
    high two bits in 32 bytes, quarter by quarter from the bottom up."""

    type = GgmlType.Q6_K
    fields = (Field(208, 2, 1), Field(192, 4, 4), Field(0, 4, 32), Field(128, 4, 16))
    parts, top, beyond = 16, 63, 32

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        half, quarter, first = part // 8, part // 2 % 4, part % 2 * 4
        for t in range(first, first + 4):
            low = self.words(e, q, 2, 16 * half + 8 * (quarter % 2) + t)
            high = self.words(e, q, 3, 8 * half + t)
            code = e.either(e.field(low, 4 * (quarter // 2), 15), e.field(high, 2 * quarter - 4, 48))
            yield 128 * half + 32 * quarter + 4 * t, code

    def d(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.signed_byte_of(self.words(e, q, 1, part // 4), part % 4)
