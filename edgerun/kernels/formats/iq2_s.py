"""IQ2_S: as IQ2_XS, with 1024 words and a sign for every weight."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import SignedGrid


class Iq2S(SignedGrid):
    """Field 1: low bytes of codes; 2: signs; 3: two high bits of each code; 4: four bits of scale a part."""

    type = GgmlType.IQ2_S
    fields = (Field(0, 2, 1), Field(2, 4, 8), Field(34, 4, 8), Field(66, 4, 2), Field(74, 4, 2))
    parts, signed_top = 16, 43
    grid = grids.IQ2_S

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        places = [8 * (piece % 4) + 2 * code for code in range(4)]
        return [(self.words(e, q, 1, piece), e.byte_fields(self.words(e, q, 3, piece // 4), places, 3))]

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        return self.words(e, q, 2, piece)

    def d(self, e: Emitter, q: Value) -> Value:
        return e.fmul(e.load_halves(q, 0), e.constant_float(0.125))

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 4, part // 8), 4 * (part % 8), 4)
