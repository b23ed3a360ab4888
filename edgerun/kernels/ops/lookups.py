"""Weights that are looked up in a grid, several by one code: the tables, and how any processor reads them.

A grid has up to 2048 words of four or eight letters. Codes come as byte vectors: `low` holds the low eight bits of
four neighbouring codes of each row, `high` the bits above them, if there are more than 256 words. They stand for 32
columns (words of eight) or 16 (of four), which are read by halves of 16 columns, as four byte vectors: columns 4 k ..
4 k + 3 in vector k, unless an instruction set has another order (`Emitter.spread_grid` gives activations in the same).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from edgerun.kernels.formats.lookup import Lookup
from edgerun.kernels.ops.word_ops import Value, WordOps
from edgerun.kernels.simd import I8, I32


class Looked:
    """The letters of four codes of each row, as they are read."""

    def half(self, half: int) -> list[Value]:
        """Four byte vectors: the first or the last 16 columns (words of four have but the first)."""
        raise NotImplementedError


class Gathered(Looked):
    """A table of 32-bit words, four letters each."""

    def __init__(self, e: WordOps, table: Lookup, low: Value, high: Value | None) -> None:
        self._e, self._low, self._high = e, low, high
        self._words = table.width // 4
        values = table.values + np.uint8(e.bias if table.signed else 0)
        self._table = constant_words(e, "words", values.view("<u4").ravel())

    def half(self, half: int) -> list[Value]:
        e, found = self._e, []
        for code in range(2 * half, 2 * half + 2) if self._words == 2 else range(4):
            index = code_of(e, self._low, self._high, code)
            if self._words == 2:
                index = e.shl(index, 1)
            found += [
                e.gather(self._table, e.add(index, e.constant(word)) if word else index) for word in range(self._words)
            ]
        return found


class GatheredNibbles(Looked):
    """Words of eight letters, each a nibble: one read for all of them, then a table in a register."""

    def __init__(self, e: WordOps, table: Lookup, low: Value, high: Value | None) -> None:
        self._e, self._low, self._high = e, low, high
        self._letters = [letter + e.bias for letter in table.letters] if table.signed else list(table.letters)
        self._letters += [0] * (16 - len(self._letters))
        packed = table.numbers[:, :4] | table.numbers[:, 4:] << np.uint8(4)
        self._table = constant_words(e, "nibbles", packed.view("<u4").ravel())

    def half(self, half: int) -> list[Value]:
        e, found = self._e, []
        for code in (2 * half, 2 * half + 1):
            word = e.gather(self._table, code_of(e, self._low, self._high, code))
            found += [e.table(e.field(word, shift, 15), self._letters) for shift in (0, 4)]
        return found


def code_of(e: WordOps, low: Value, high: Value | None, code: int) -> Value:
    """L x i32."""
    index = e.byte_of(low, code)
    return index if high is None else e.either(index, e.shl(e.byte_of(high, code), 8))


def constant_words(e: WordOps, name: str, words: NDArray[np.uint32]) -> Value:
    """A pointer to the words, which lie in the kernel's object file under no name that others see."""
    module, full = e.b.module, f"edgerun.grid.{name}"
    known = module.globals.get(full)
    if known is None:
        kind = ir.ArrayType(I32, len(words))
        known = ir.GlobalVariable(module, kind, full)
        known.linkage, known.global_constant, known.unnamed_addr = "internal", True, True
        known.initializer = ir.Constant(kind, [ir.Constant(I32, int(word)) for word in words.view("<i4")])
    return e.b.bitcast(known, I8.as_pointer())
