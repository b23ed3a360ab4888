"""Blocks of 32 whose nibbles, as they lie in Q4_0, look up signed values."""

from __future__ import annotations

from typing import ClassVar

from edgerun.kernels.formats.base import Codes, Emitter, Flat, Value


class NibbleTable(Flat):
    """Field 1: nibbles. `values`: what each of the sixteen stands for."""

    values: ClassVar[tuple[int, ...]]
    parts, top = 1, 0

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        return ((column, e.table_codes(code, self.values)) for column, code in self.nibble_codes(e, q, 1, 0, 16))
