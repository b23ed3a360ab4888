"""Q2_0: d (q - 1), 64 weights under one scale."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import TURNED_PAIRS, Codes, Emitter, Field, Flat, Value


class Q2_0(Flat):
    """Two bits a weight, turned: of sixteen weights in a word the first four have theirs lowest in its four bytes.
    Codes come eightfold, so that 1 becomes the 8 whose sums stand ready; d is divided by as much."""

    type = GgmlType.Q2_0
    fields = (Field(0, 2, 1), Field(2, 4, 4, TURNED_PAIRS))
    parts, top, beyond = 2, 24, 8

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return (
            (32 * part + 16 * word + 4 * k, e.field(self.words(e, q, 1, 2 * part + word), 2 * k - 3, 24))
            for word in range(2)
            for k in range(4)
        )

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))
