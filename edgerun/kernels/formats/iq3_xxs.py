"""IQ3_XXS: d / 4 (2 scale + 1) times words of four magnitudes with an even number of negatives in eight."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import SEVENS, SignedGrid


class Iq3Xxs(SignedGrid):
    """Field 1: codes. Field 2: of each of eight parts four times seven signs with the scale on top."""

    type = GgmlType.IQ3_XXS
    fields = (Field(0, 2, 1), Field(2, 4, 16), Field(66, 4, 8))
    parts, signed_top = 8, 62
    grid = grids.IQ3_XXS

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        return [(self.words(e, q, 1, 2 * piece + half), None) for half in range(2)]

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        return e.even_signs(e.byte_fields(self.words(e, q, 2, piece), SEVENS, 127))

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.25))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 2, part), 28, 4)
