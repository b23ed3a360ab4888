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
    """Widened when loaded: exact. Two bf16 hold a weight exactly as well, its first eight bits and the other three. The
    lesser one is not multiplied with lesser parts of activations: that is 2^-15 of a product at most, and leaving the
    third part off 2^-17."""

    type = GgmlType.F16
    fields = (Field(0, 2, 1),)
    tile_products = ((0, 1), (0,))

    def weight(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def pieces(self, e: Emitter, q: Value) -> list[Value]:
        weight = self.weight(e, q)
        first = e.b.bitcast(e.b.and_(e.b.bitcast(weight, e.words), e.constant(0xFFFF0000)), e.floats)
        return [first, e.fsub(weight, first)]

    def planes(self, e: Emitter, first: Value, second: Value) -> list[Value]:
        columns = ([e.b.bitcast(piece, e.words) for piece in self.pieces(e, q)] for q in (first, second))
        return [e.either(e.shr(one, 16), other) for one, other in zip(*columns, strict=True)]


class Bf16(Plain):
    """Widened when loaded: exact. By tiles every product is exact, too."""

    type = GgmlType.BF16
    fields = (Field(0, 2, 1),)
    tile_products = ((0, 1, 2),)

    def weight(self, e: Emitter, q: Value) -> Value:
        return e.load_bfloats(q, 0)

    def planes(self, e: Emitter, first: Value, second: Value) -> list[Value]:
        return [e.either(e.load_u16(first, 0), e.shl(e.load_u16(second, 0), 16))]
