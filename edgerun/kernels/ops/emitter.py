"""What an instruction set is to a product: operations on words (`word_ops`), and from them codes, grids and chains of
products. This is the plain one, which every processor runs; an instruction set overrides what it does better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from edgerun.kernels.formats.lookup import Lookup
from edgerun.kernels.ops.lookups import Gathered, Looked
from edgerun.kernels.ops.word_ops import Value, WordOps, simd_constant

__all__ = ["Chain", "Emitter", "PairChain", "SumChain", "Value", "simd_constant"]


class Emitter(WordOps):
    """Emits at `builder`, for `lanes` rows."""

    # -- products -----------------------------------------------------------------------------------------------

    def signed_codes(self, w: Value) -> Any:
        """Signed bytes as `Chain.step` takes them, made once for all rows of activations."""
        size = self.absolute(w)
        if not self.several:
            return size, w, None
        negative = self.negative(w)
        return size, negative, self.mul_pairs(size, negative)

    def table_codes(self, codes: Value, values: Sequence[int]) -> Any:
        """The values (16, signed) of codes below 16, as `Chain.step` takes them."""
        return self.signed_codes(self.table(codes, values))

    # -- grids: see `lookups` -------------------------------------------------------------------------------------

    def look_up(self, table: Lookup, low: Value, high: Value | None = None) -> Looked:
        """The letters of four codes of each row, with the bias on where signs will be."""
        return Gathered(self, table, low, high)

    def spread_grid(self, table: Lookup, x: Value, column: int) -> Value:
        """Activations in the order in which the table's vectors hold columns; column / 4 is the vector's number."""
        return self.spread_quants(x, column)

    def grid_columns(self, table: Lookup, column: int) -> Sequence[int]:
        """The columns of that vector, in their order."""
        return range(column, column + 4)

    def negatives(self, table: Lookup, signs: Value, half: int) -> list[Value]:
        """Bits of 32 columns -> of 16 of them, for each of a half's vectors: which bytes are negative."""
        bits = (
            ir.Constant(self.bytes, [1, 2, 4, 8] * self.lanes),
            ir.Constant(self.bytes, [16, 32, 64, -128] * self.lanes),
        )
        zero, found = simd_constant(self.bytes, 0), []
        for byte in (2 * half, 2 * half + 1):
            eight = self.b.bitcast(self.pick_bytes(signs, signs, [byte] * 4), self.bytes)
            found += [self.b.icmp_signed("!=", self.b.and_(eight, each), zero) for each in bits]
        return found

    def by_code(self, table: Lookup, four: Value, half: int) -> list[Value]:
        """A byte for each of four codes of eight letters -> for each of a half's vectors, beside every letter."""
        return [self.pick_bytes(four, four, [2 * half + k // 2] * 4) for k in range(4)]

    def even_signs(self, seven: Value) -> Value:
        """Bytes of seven signs -> of eight, an even number of which is negative."""
        parity = self.b.xor(seven, self.field(seven, 4, 15))
        parity = self.b.xor(parity, self.field(parity, 2, 63))
        parity = self.b.xor(parity, self.field(parity, 1, 127))
        return self.either(seven, self.field(parity, -7, 128))

    def with_signs(self, weights: Value, negative: Value) -> Any:
        """Letters with signs, as `Chain.step` takes them."""
        signed = self.signed(weights, negative)
        return signed if self.signed_start else (weights, signed, None)

    def signed(self, weights: Value, negative: Value) -> Value:
        """Bytes, turned to their negatives where so."""
        plain = self.b.bitcast(weights, self.bytes)
        turned = self.b.sub(simd_constant(self.bytes, 0), plain)  # 128 + w becomes 128 - w
        return self.b.bitcast(self.b.select(negative, turned, plain), self.words)

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        """total + scale * (start + a sum of products of codes up to `top` with activations), all i32; None: 0, for
        scale 1. top 0: codes are signed, up to `signed_top` either way. -32768 <= scale < 32768."""
        return PairChain(self, top or -signed_top, start, scale, total)


class Chain:
    """A sum of products of four neighbours, lane by lane, while it is made."""

    def step(self, codes: Any, x: Value) -> None:
        """Add codes (unsigned bytes, or what `Emitter.signed_codes` made) times activations."""
        raise NotImplementedError

    def end(self) -> Value:
        """The sum, i32."""
        raise NotImplementedError


class SumChain(Chain):
    """One sum in i32, of processors that can add products to it."""

    def __init__(self, emitter: Emitter, start: Value | None, scale: Value | None, total: Value | None) -> None:
        self._e = emitter
        if start is None:
            start = total if scale is None else None
        elif scale is None and total is not None:
            start = emitter.add(start, total)
        self._sum = emitter.constant(0) if start is None else start
        self._scale, self._total = scale, total

    def end(self) -> Value:
        if self._scale is None:
            return self._sum
        product = self._e.mul(self._sum, self._scale)
        return product if self._total is None else self._e.add(self._total, product)


class PairChain(Chain):
    """Products of two neighbours in i16, as many as fit before they are widened.

    Signed codes are magnitudes times the activation with the code's sign. Where several rows share codes, its bits are
    inverted instead, which more units of a processor can do: that gives -x - 1, so each negative code's magnitude is
    missed once, the same for all rows. (Two products are at least 2 * 128 * -128 = -32768, at most 2 * 128 * 127.)

    `top` is the largest code, negative for signed ones: they are up to as much either way."""

    def __init__(
        self, emitter: Emitter, top: int, start: Value | None, scale: Value | None, total: Value | None
    ) -> None:
        e = self._e = emitter
        self._signed = top < 0
        self._limit = 32768 // (2 * 128 * -top) if self._signed else 32767 // (2 * 127 * top)
        self._pending: Value | None = None  # i16
        self._missed: Value | None = None  # i16, below 0
        self._room = 0
        self._factor: Value | None = None
        if scale is not None:
            twice = e.either(e.b.and_(scale, e.constant(0xFFFF)), e.shl(scale, 16))
            self._factor = e.b.bitcast(twice, e.pairs)
        if start is not None:
            beyond = start if scale is None else e.mul(start, scale)
            total = beyond if total is None else e.add(total, beyond)
        self._total = total

    def step(self, codes: Any, x: Value) -> None:
        e = self._e
        product = self._signed_product(codes, x) if self._signed else e.mul_pairs(codes, x)
        if self._pending is not None and self._room:
            self._pending = e.b.add(self._pending, product)
            self._room -= 1
            return
        self._widen()
        self._pending, self._room = product, self._limit - 1

    def _signed_product(self, codes: Any, x: Value) -> Value:
        e, (size, sign, missed) = self._e, codes
        if missed is None:
            return e.mul_pairs(size, e.with_sign(x, sign))
        self._missed = missed if self._missed is None else e.b.add(self._missed, missed)
        return e.mul_pairs(size, e.b.xor(e.b.bitcast(x, e.bytes), sign))

    def end(self) -> Value:
        self._widen()
        assert self._total is not None
        if self._missed is None:
            return self._total
        return self._e.sub(self._total, self._e.add_pairs(self._missed, self._factor))

    def _widen(self) -> None:
        if self._pending is not None:
            if self._factor is None:
                self._factor = self._e.ones(self._pending)
            self._total = self._e.dot_pairs(self._total, self._pending, self._factor)
            self._pending = None
