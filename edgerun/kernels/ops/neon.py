"""NEON: 128-bit registers, so eight rows are two of them, and their halves are the low and the high four rows.

Codes may be signed here, and unsigned ones stay below 128, so both are signed bytes and no sum of activations has to
be taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.ops.emitter import Chain, Emitter, SumChain, Value, simd_constant
from edgerun.kernels.simd import I8, I16, I32

_BYTES, _PAIRS, _WORDS = ir.VectorType(I8, 16), ir.VectorType(I16, 8), ir.VectorType(I32, 4)  # a register


class Neon(Emitter):
    """Without dot products (Raspberry Pi 4, phones before 2018)."""

    def settled(self, a: Value) -> Value:
        kind = ir.FunctionType(_WORDS, [_WORDS])
        hold = ir.InlineAsm(kind, "", "=w,0", side_effect=True)
        return self.joined([self.b.call(hold, [part]) for part in self.quarters(a, _WORDS)])

    def spread_quants(self, address: Value, column: int) -> Value:
        # Sixteen columns are one load, and a dot product takes any four of them by their number in the register.
        words = self.load(address, column // 16 * 16, _WORDS)
        return simd.shuffle(self.b, words, words, [column % 16 // 4] * self.lanes)

    def store_floats(self, address: Value, value: Value, valid: Value) -> None:
        # LLVM makes a branch for each lane of a masked store.
        with self.b.if_else(self._all_valid(valid)) as (whole, part):
            with whole:
                pointer = self.b.inttoptr(address, self.floats.as_pointer())
                self.b.store(value, pointer).align = 1
            with part:
                super().store_floats(address, value, valid)

    def load_some_floats(self, address: Value, valid: Value) -> Value:
        before, zeros = self.b.block, self.constant_float(0.0)
        with self.b.if_then(self.b.icmp_signed(">", valid, ir.Constant(I32, 0))):
            with self.b.if_else(self._all_valid(valid)) as (whole, part):
                with whole:
                    all_lanes, whole_end = self.load_floats(address, 0), self.b.block
                with part:
                    some_lanes, part_end = super().load_some_floats(address, valid), self.b.block
            loaded, loaded_end = self.b.phi(self.floats), self.b.block
            loaded.add_incoming(all_lanes, whole_end)
            loaded.add_incoming(some_lanes, part_end)
        result = self.b.phi(self.floats)
        result.add_incoming(zeros, before)
        result.add_incoming(loaded, loaded_end)
        return result

    def _all_valid(self, valid: Value) -> Value:
        return self.b.icmp_signed(">=", valid, ir.Constant(I32, self.lanes))

    def field(self, a: Value, shift: int, byte: int) -> Value:
        # NEON shifts bytes, so that nothing crosses them, and often nothing is left to mask.
        if not shift:
            return self.mask(a, byte)
        by = simd_constant(self.bytes, abs(shift))
        wide = self.b.bitcast(a, self.bytes)
        moved = self.b.bitcast(self.b.lshr(wide, by) if shift > 0 else self.b.shl(wide, by), self.words)
        kept = 255 >> shift if shift > 0 else 255 << -shift & 255
        return moved if kept & ~byte == 0 else self.mask(moved, byte)

    def table(self, codes: Value, values: Sequence[int]) -> Value:
        table = ir.Constant(_BYTES, [value - 256 if value > 127 else value for value in values])
        return self.by_quarters(lambda part: self.call("tbl1.v16i8", _BYTES, table, part), _BYTES, codes)

    def signed_codes(self, w: Value) -> Any:
        return w

    def with_signs(self, weights: Value, negative: Value) -> Any:
        return self.signed(weights, negative)

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        return WideningChain(self, top or signed_top, start, scale, total)

    # -- registers ----------------------------------------------------------------------------------------------

    def quarters(self, a: Value, kind: Any) -> list[Value]:
        """The registers of a word or byte vector (four rows each), as `kind`."""
        a = self.b.bitcast(a, self.words)
        firsts = range(0, self.lanes, 4)
        parts = [simd.shuffle(self.b, a, a, list(range(first, first + 4))) for first in firsts]
        return [self.b.bitcast(part, kind) for part in parts]

    def joined(self, parts: Sequence[Value]) -> Value:
        """Registers to a word vector."""
        parts = [self.b.bitcast(part, _WORDS) for part in parts]
        count = 4
        while len(parts) > 1:
            count *= 2
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [simd.shuffle(self.b, low, high, list(range(count))) for low, high in pairs]
        return parts[0]

    def by_quarters(self, operation: Callable[..., Value], kind: Any, *vectors: Value) -> Value:
        """The word vector of what `operation` makes of registers of `vectors`, as `kind` each."""
        parts = zip(*(self.quarters(vector, kind) for vector in vectors), strict=True)
        return self.joined([operation(*part) for part in parts])

    def call(self, name: str, result: Any, *values: Value) -> Value:
        """One of NEON's instructions."""
        call = simd.declare(self.b, f"llvm.aarch64.neon.{name}", result, [value.type for value in values])
        return self.b.call(call, values)


class DotProduct(Neon):
    """`sdot`: four products of signed bytes are added to an i32 lane (Raspberry Pi 5, phones since 2018, Apple)."""

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        return DotChain(self, start, scale, total)

    def dot(self, total: Value, codes: Value, x: Value) -> Value:
        """total + the products of four neighbours, lane by lane."""
        parts = zip(self.quarters(total, _WORDS), self.quarters(codes, _BYTES), self.quarters(x, _BYTES), strict=True)
        return self.joined([self.call("sdot.v4i32.v16i8", _WORDS, *part) for part in parts])


class DotChain(SumChain):
    """One sum in i32."""

    _e: DotProduct

    def step(self, codes: Any, x: Value) -> None:
        self._sum = self._e.dot(self._sum, codes, x)


class WideningChain(SumChain):
    """`smlal`: a register of codes becomes two of i16, of two rows each, a product a lane. As many are added as fit
    (two of codes up to 128 either way: 2 * 128 * 127 < 32768), then neighbours go to i32 (`sadalp`), and at the end
    their sums to their row (`addp`)."""

    _e: Neon

    def __init__(self, emitter: Neon, top: int, start: Value | None, scale: Value | None, total: Value | None) -> None:
        super().__init__(emitter, start, scale, total)
        self._limit = 32767 // (127 * top)
        self._room = self._limit
        self._small: list[Value] = []  # i16 sums, of two rows each
        self._wide: list[Value] = []  # i32 sums of neighbours of `_small`

    def step(self, codes: Any, x: Value) -> None:
        e = self._e
        products = []
        for w, y in zip(e.quarters(codes, _BYTES), e.quarters(x, _BYTES), strict=True):
            for half in (list(range(8)), list(range(8, 16))):
                parts = (simd.shuffle(e.b, each, each, half) for each in (w, y))
                products.append(e.call("smull.v8i16", _PAIRS, *parts))
        if not self._room:
            self._widen()
        if self._small:
            products = [e.b.add(old, new) for old, new in zip(self._small, products, strict=True)]
        self._small = products
        self._room -= 1

    def end(self) -> Value:
        e = self._e
        self._widen()
        pairs = zip(self._wide[::2], self._wide[1::2], strict=True)
        products = e.joined([e.call("addp.v4i32", _WORDS, low, high) for low, high in pairs])
        self._sum = e.add(self._sum, products)
        return super().end()

    def _widen(self) -> None:
        e = self._e
        sums = [e.call("saddlp.v4i32.v8i16", _WORDS, small) for small in self._small]
        self._wide = [e.b.add(old, new) for old, new in zip(self._wide, sums, strict=True)] if self._wide else sums
        self._small, self._room = [], self._limit
