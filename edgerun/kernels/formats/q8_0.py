"""Q8_0: d q, q signed."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Codes, Emitter, Field, Flat, Value


class Q8_0(Flat):
    """Eight words."""

    type = GgmlType.Q8_0
    fields = (Field(0, 2, 1), Field(2, 4, 8))
    parts, top = 1, 0

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return ((4 * t, e.signed_codes(self.words(e, q, 1, t))) for t in range(8))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, 0)
