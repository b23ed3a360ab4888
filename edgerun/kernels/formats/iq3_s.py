"""IQ3_S: d (2 scale + 1) times words of four odd numbers, a sign for every weight, eight parts of 32."""

from __future__ import annotations

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import grids
from edgerun.kernels.formats.base import Emitter, Field, Value
from edgerun.kernels.formats.grid_codes import SignedGrid


class Iq3S(SignedGrid):
    """Field 1: low bytes of codes; 2: their ninth bits; 3: signs; 4: four bits of scale a part."""

    type = GgmlType.IQ3_S
    fields = (Field(0, 2, 1), Field(2, 4, 16), Field(66, 4, 2), Field(74, 4, 8), Field(106, 4, 1))
    parts, signed_top = 8, 15
    grid = grids.IQ3_S

    def numbers(self, e: Emitter, q: Value, piece: int) -> list[tuple[Value, Value | None]]:
        found: list[tuple[Value, Value | None]] = []
        for half in range(2):
            places = [8 * (piece % 4) + 4 * half + code for code in range(4)]
            ninth = e.byte_fields(self.words(e, q, 2, piece // 4), places, 1)
            found.append((self.words(e, q, 1, 2 * piece + half), ninth))
        return found

    def signs(self, e: Emitter, q: Value, piece: int) -> Value:
        return self.words(e, q, 3, piece)

    def d(self, e: Emitter, q: Value) -> Value:
        return e.load_halves(q, 0)

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        return self.odd(e, self.words(e, q, 4, 0), 4 * part, 4)
