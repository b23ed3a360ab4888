"""IQ2_XXS: d / 8 (2 scale + 1) times words of eight magnitudes with an even number of negatives, eight parts of 32."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import SEVENS, SignedGrid


class Iq2Xxs(SignedGrid):
    """Of each part a word of four codes, and one of four times seven signs with the scale on top."""

    type = GgmlType.IQ2_XXS
    fields = (Field(0, 2, 1), Field(2, 4, 16))
    parts, signed_top = 8, 43
    grid = grids.IQ2_XXS

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        return [(self.words(e, q, 1, 2 * piece), None)]

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        return e.even_signs(e.byte_fields(self.words(e, q, 1, 2 * piece + 1), SEVENS, 127))

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 1, 2 * part + 1), 28, 4)
