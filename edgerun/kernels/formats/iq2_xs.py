"""IQ2_XS: as IQ2_XXS, with 512 words and sixteen parts of 16."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import SignedGrid


class Iq2Xs(SignedGrid):
    """Field 1: of every eight columns nine bits of code, seven of signs. Field 2: four bits of scale a part."""

    type = GgmlType.IQ2_XS
    fields = (Field(0, 2, 1), Field(2, 4, 16), Field(66, 4, 2))
    parts, signed_top = 16, 43
    grid = grids.IQ2_XS

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        first, second = (self.words(e, q, 1, 2 * piece + word) for word in range(2))
        return [(e.pick_bytes(first, second, (0, 2, 4, 6)), e.mask(self._upper(e, q, piece), 1))]

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        return e.even_signs(e.field(self._upper(e, q, piece), 1, 127))

    def _upper(self, e: Emitter, q: Value, piece: int) -> Value:
        """The upper bytes of four groups."""
        first, second = (self.words(e, q, 1, 2 * piece + word) for word in range(2))
        return e.once((q, "upper", piece), lambda: e.pick_bytes(first, second, (1, 3, 5, 7)))

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 2, part // 8), 4 * (part % 8), 4)
