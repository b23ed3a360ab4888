"""AVX-512 with VBMI (Ice Lake, Zen 4 and later): grids are looked up in registers, 64 codes at once.

A grid's letters are few, so their numbers take two or three bits, and a byte holds four or two of them: a word's
first half is one *plane* of bytes, its second another. `vpermi2b` reads 128 entries of a plane for 64 codes; more are
chosen among by the codes' upper bits. `vpermb` then makes a letter of the bits that it looks at. What comes out first
is the first letter of every byte, so 16 columns stand turned: vector k holds columns k, 4 + k, 8 + k, 12 + k.

IQ1's 2048 words would take 32 of `vpermi2b` for 512 weights: memory is read for them, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from edgerun.kernels import simd
from edgerun.kernels.formats.lookup import Lookup
from edgerun.kernels.ops.emitter import Emitter, Value, simd_constant
from edgerun.kernels.ops.lookups import Looked
from edgerun.kernels.ops.vnni import Avx512Vnni
from edgerun.kernels.simd import I8

_MOST_WORDS = 1024
_EVEN = (0x7F, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01)  # rows of a bit matrix, the last bit's first: it is the parity


class Avx512Vbmi(Avx512Vnni):
    """512 bits."""

    def look_up(self, table: Lookup, low: Value, high: Value | None = None) -> Looked:
        return _Planes(self, table, low, high) if _fits(table) else super().look_up(table, low, high)

    def spread_grid(self, table: Lookup, x: Value, column: int) -> Value:
        if not _fits(table):
            return super().spread_grid(table, x, column)
        sixteen = self.load(x, column // 16 * 16, ir.VectorType(I8, 16))
        everywhere = simd.shuffle(self.b, sixteen, sixteen, list(range(16)) * 4)
        turned = [place % 16 for place in self.grid_columns(table, column)] * 16
        call = simd.declare(self.b, self._SHUFFLE, self.bytes, [self.bytes] * 2)
        return self.b.bitcast(self.b.call(call, (everywhere, _bytes(turned))), self.words)

    def grid_columns(self, table: Lookup, column: int) -> Sequence[int]:
        if not _fits(table):
            return super().grid_columns(table, column)
        first = column // 16 * 16
        return [first + 4 * j + column % 16 // 4 for j in range(4)]

    def negatives(self, table: Lookup, signs: Value, half: int) -> list[Value]:
        if not _fits(table):
            return super().negatives(table, signs, half)
        fours = self.b.bitcast(self.byte_fields(signs, [16 * half + 4 * j for j in range(4)], 255), self.bytes)
        zero = simd_constant(self.bytes, 0)
        return [self.b.icmp_signed("!=", self.b.and_(fours, simd_constant(self.bytes, 1 << k)), zero) for k in range(4)]

    def by_code(self, table: Lookup, four: Value, half: int) -> list[Value]:
        if not _fits(table):
            return super().by_code(table, four, half)
        first = 2 * half
        return [self.pick_bytes(four, four, (first, first, first + 1, first + 1))] * 4

    def byte_fields(self, a: Value, offsets: Sequence[int], byte: int) -> Value:
        places = [32 * (lane % 2) + offset for lane in range(self.lanes) for offset in offsets]
        call = simd.declare(self.b, "llvm.x86.avx512.pmultishift.qb.512", self.bytes, [self.bytes] * 2)
        found = self.b.bitcast(self.b.call(call, (_bytes(places), self.b.bitcast(a, self.bytes))), self.words)
        return found if byte == 255 else self.mask(found, byte)

    def even_signs(self, seven: Value) -> Value:
        call = simd.declare(self.b, "llvm.x86.vgf2p8affineqb.512", self.bytes, [self.bytes, self.bytes, I8])
        rows = _bytes(list(_EVEN) * 8)
        return self.b.bitcast(
            self.b.call(call, (self.b.bitcast(seven, self.bytes), rows, ir.Constant(I8, 0))), self.words
        )


def _fits(table: Lookup) -> bool:
    """Whether it is looked up in registers."""
    return len(table.numbers) <= _MOST_WORDS


class _Planes(Looked):
    def __init__(self, e: Emitter, table: Lookup, low: Value, high: Value | None) -> None:
        self._e = e
        self._bits = 2 if len(table.letters) <= 4 else 3
        self._letters = [letter + (e.bias if table.signed else 0) for letter in table.letters]
        each = table.width // 2  # letters of a plane
        shifts = (self._bits * np.arange(each)).astype(np.uint8)
        first, second = (
            np.bitwise_or.reduce(table.numbers[:, start : start + each] << shifts, axis=1) for start in (0, each)
        )
        self._eight = table.width == 8
        self._planes = [self._entries(plane, low, high) for plane in (first, second)]

    def _entries(self, plane: NDArray[np.uint8], low: Value, high: Value | None) -> Value:
        """The plane's byte for every code."""
        e, b = self._e, self._e.b
        call = simd.declare(b, "llvm.x86.avx512.vpermi2var.qi.512", e.bytes, [e.bytes] * 3)
        tables = [_bytes(plane[at : at + 64].tolist()) for at in range(0, len(plane), 64)]
        low = b.bitcast(low, e.bytes)
        level = [b.call(call, (one, low, two)) for one, two in zip(tables[::2], tables[1::2], strict=True)]
        zero, bit = simd_constant(e.bytes, 0), 7
        while len(level) > 1:
            if bit == 7:
                upper = b.icmp_signed("<", low, zero)
            else:
                high_bit = b.and_(b.bitcast(high, e.bytes), simd_constant(e.bytes, 1 << (bit - 8)))
                upper = b.icmp_signed("!=", high_bit, zero)
            level = [b.select(upper, two, one) for one, two in zip(level[::2], level[1::2], strict=True)]
            bit += 1
        return level[0]

    def half(self, half: int) -> list[Value]:
        e, (first, second) = self._e, self._planes
        if not self._eight:
            return [self._letter(plane, at) for plane in (first, second) for at in range(2)]
        both = e.pick_bytes(first, second, [2 * half, 4 + 2 * half, 2 * half + 1, 5 + 2 * half])
        return [self._letter(both, at) for at in range(4)]

    def _letter(self, entries: Value, at: int) -> Value:
        """Of every byte the letter whose number is the `at`-th of it."""
        e, b = self._e, self._e.b
        shift, mask = self._bits * at, (1 << self._bits) - 1
        if shift + self._bits > 6:  # vpermb looks at six bits
            entries, shift = b.lshr(b.bitcast(entries, e.words), e.constant(2)), shift - 2
        letters = [self._letters[min(i >> shift & mask, len(self._letters) - 1)] for i in range(64)]
        call = simd.declare(b, "llvm.x86.avx512.permvar.qi.512", e.bytes, [e.bytes] * 2)
        return b.bitcast(b.call(call, (_bytes(letters), b.bitcast(entries, e.bytes))), e.words)


def _bytes(values: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(I8, len(values)), [value - 256 if value > 127 else value for value in values])
