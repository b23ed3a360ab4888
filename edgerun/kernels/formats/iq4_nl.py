"""IQ4_NL: d times a value that a nibble looks up."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.nibble_table import NibbleTable

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Iq4Nl(NibbleTable):
    """Nibbles as in Q4_0."""

    type = GgmlType.IQ4_NL
    fields = (Field(0, 2, 1), Field(2, 4, 4))
    values = VALUES

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return e.load_halves(q, 0)
