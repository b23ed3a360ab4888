"""F32, F16 and BF16: a block is one column of a group of rows."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.formats.base import Emitter, Field, Plain, Value


class F32(Plain):
    """Weights as they are."""

    type = GgmlType.F32
    fields = (Field(0, 4, 1),)

    def weight(self, e: Emitter, q: Value) -> Value:
        return e.load_floats(q, 0)


class F16(Plain):
    """Widened when loaded: exact."""

    type = GgmlType.F16
    fields = (Field(0, 2, 1),)

    def weight(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)


class Bf16(Plain):
    """Widened when loaded: exact."""

    type = GgmlType.BF16
    fields = (Field(0, 2, 1),)

    def weight(self, e: Emitter, q: Value) -> Value:
        return e.load_bfloats(q, 0)
