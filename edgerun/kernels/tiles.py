"""A block of a tile: GROUPS groups of rows times TOKENS tokens, written out in LLVM by loops in Python.

All arguments come as one tuple: (weights, sums, quants of each token, scales of each, sums of activations of each).
`weights` are unpacked: see what each tile states, for one group, the next group's following. The sums are (TOKENS,
GROUPS, L) f32 in memory. Integer parts are exact, so their order is free; the float part is that of one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from edgerun.kernels import simd
from edgerun.kernels.ops import Ops, add_pairs_emitter, declare_fma, mul_pairs_emitter
from edgerun.kernels.simd import FLOAT, I8, I16, I32, I64, function, splat
from edgerun.kernels.tile_layout import GROUPS, TOKENS

_ARGUMENTS: Any = types.UniTuple(types.int64, 2 + 3 * TOKENS)  # type: ignore[no-untyped-call]
_CELLS = [(token, group) for token in range(TOKENS) for group in range(GROUPS)]


@dataclass(frozen=True)
class _Tile:
    """LLVM being written for one block of a tile."""

    builder: Any
    ops: Ops
    weights: Any
    sums: Any
    quants: list[Any]
    scales: list[Any]
    offsets: list[Any]
    group_bytes: int

    @classmethod
    def of(cls, builder: Any, ops: Ops, arguments: Any, group_bytes: int) -> _Tile:
        """From the tuple of addresses."""
        weights, sums, *rest = (builder.extract_value(arguments, i) for i in range(2 + 3 * TOKENS))
        n = TOKENS
        return cls(builder, ops, weights, sums, rest[:n], rest[n : 2 * n], rest[2 * n :], group_bytes)

    def load(self, base: Any, offset: int, kind: Any) -> Any:
        """A vector or scalar at base + offset."""
        return simd._load(self.builder, self.builder.add(base, ir.Constant(I64, offset)), kind)

    def weight(self, group: int, offset: int, kind: Any) -> Any:
        """A vector of a group's unpacked block."""
        return self.load(self.weights, group * self.group_bytes + offset, kind)

    def all_weights(self, offset: int, kind: Any) -> list[Any]:
        """The same vector of every group."""
        return [self.weight(group, offset, kind) for group in range(GROUPS)]

    def everywhere(self, base: Any, offset: int, kind: Any) -> Any:
        """Four bytes of memory in every lane, as vector `kind`."""
        if kind.element is FLOAT:
            return splat(self.builder, self.load(base, offset, FLOAT), self.ops.lanes)
        return self.builder.bitcast(splat(self.builder, self.load(base, offset, I32), self.ops.lanes), kind)

    def keep_order(self) -> None:
        """What was loaded stays here: LLVM would ask for all of a block at once, and run out of registers."""
        self.builder.fence("seq_cst", "singlethread")

    def float_vector(self) -> Any:
        return ir.VectorType(FLOAT, self.ops.lanes)

    def to_floats(self, value: Any) -> Any:
        return self.builder.sitofp(value, self.float_vector())

    def add_to_sum(self, token: int, group: int, value: Any, scale: Any) -> None:
        """sum = value * scale + sum."""
        lanes = self.ops.lanes
        offset = ir.Constant(I64, (token * GROUPS + group) * 4 * lanes)
        address = self.builder.add(self.sums, offset)
        pointer = self.builder.inttoptr(address, self.float_vector().as_pointer())
        before = self.builder.load(pointer)
        before.align = 4
        self.builder.store(
            self.builder.call(declare_fma(self.builder, lanes), (value, scale, before)), pointer
        ).align = 4


def _vectors(ops: Ops) -> tuple[Any, Any, Any, Any]:
    """LLVM's bytes, pairs, ints, floats of L lanes."""
    lanes = ops.lanes
    return (
        ir.VectorType(I8, 4 * lanes),
        ir.VectorType(I16, 2 * lanes),
        ir.VectorType(I32, lanes),
        ir.VectorType(FLOAT, lanes),
    )


def _plus(builder: Any, total: Any, more: Any) -> Any:
    return more if total is None else builder.add(total, more)


def legacy_tile(ops: Ops, group_bytes: int, *, wide: bool) -> Any:
    """A block of 32: Q4_0 ([8 byte vectors of codes] [scale f32]; eight sums of pairs fit i16, see `build_matmul_q4_0`;
    offsets: i32 of a block) or, `wide`, Q8_0 ([16 vectors of i16 pairs] [scale f32]; quants are i16)."""
    bytes_t, pairs_t, ints_t, floats_t = _vectors(ops)
    vector = 4 * ops.lanes
    mul_pairs, add_pairs = mul_pairs_emitter(ops.isa), add_pairs_emitter(ops.isa)
    count, kind = (16, pairs_t) if wide else (8, bytes_t)

    def emit(b: Any, arguments: Any) -> None:
        tile = _Tile.of(b, ops, arguments, group_bytes)
        totals: dict[tuple[int, int], Any] = dict.fromkeys(_CELLS)
        for v in range(count):
            tile.keep_order()
            weights = tile.all_weights(v * vector, kind)
            for token in range(TOKENS):
                x = tile.everywhere(tile.quants[token], 4 * v, kind)
                for group in range(GROUPS):
                    product = (add_pairs if wide else mul_pairs)(b, weights[group], x)
                    totals[token, group] = _plus(b, totals[token, group], product)
        tile.keep_order()
        scales = tile.all_weights(count * vector, floats_t)
        for token in range(TOKENS):
            factor = tile.everywhere(tile.scales[token], 0, floats_t)
            offset = None if wide else tile.everywhere(tile.offsets[token], 0, ints_t)
            for group in range(GROUPS):
                total = totals[token, group]
                if not wide:
                    total = b.add(add_pairs(b, total, ir.Constant(pairs_t, [1] * 2 * ops.lanes)), offset)
                tile.add_to_sum(token, group, b.fmul(tile.to_floats(total), factor), scales[group])

    return function((_ARGUMENTS,), types.void, emit)


def superblock_tile(ops: Ops, group_bytes: int, *, run: int, halves: bool) -> Any:
    """A block of 256 of a K-quant: [64 byte vectors of codes] [8 (halves: 16) scales as i16 pairs], then

    plain: [4 vectors of (min, min)] [d f32] [dmin f32], over the activations' eight sums of 32;
    halves (a scale for 16 weights, codes are 32 too high): [8 vectors of (scale, scale)] [d f32], over sums of 16.

    run: sums of pairs that fit i16.
    """
    bytes_t, pairs_t, _, floats_t = _vectors(ops)
    vector = 4 * ops.lanes
    mul_pairs, add_pairs = mul_pairs_emitter(ops.isa), add_pairs_emitter(ops.isa)
    scales_at = 64 * vector
    mins_at = scales_at + (16 if halves else 8) * vector
    d_at = mins_at + (8 if halves else 4) * vector
    per_scale = 4 if halves else 8

    def emit(b: Any, arguments: Any) -> None:
        tile = _Tile.of(b, ops, arguments, group_bytes)
        dots: dict[tuple[int, int], Any] = dict.fromkeys(_CELLS)
        for first in range(0, 64, run):
            totals: dict[tuple[int, int], Any] = dict.fromkeys(_CELLS)
            for v in range(first, first + run):
                tile.keep_order()
                weights = tile.all_weights(v * vector, bytes_t)
                for token in range(TOKENS):
                    x = tile.everywhere(tile.quants[token], 4 * v, bytes_t)
                    for group in range(GROUPS):
                        totals[token, group] = _plus(b, totals[token, group], mul_pairs(b, weights[group], x))
            scales = tile.all_weights(scales_at + first // per_scale * vector, pairs_t)
            for token, group in _CELLS:
                scaled = add_pairs(b, totals[token, group], scales[group])
                dots[token, group] = _plus(b, dots[token, group], scaled)
        corrections: dict[tuple[int, int], Any] = dict.fromkeys(_CELLS)
        for v in range(8 if halves else 4):
            tile.keep_order()
            mins = tile.all_weights(mins_at + v * vector, pairs_t)
            for token in range(TOKENS):
                sums = tile.everywhere(tile.offsets[token], 4 * v + (0 if halves else 32), pairs_t)
                for group in range(GROUPS):
                    product = add_pairs(b, mins[group], sums)
                    corrections[token, group] = _plus(b, corrections[token, group], product)
        tile.keep_order()
        d = tile.all_weights(d_at, floats_t)
        dmin = None if halves else tile.all_weights(d_at + vector, floats_t)
        for token in range(TOKENS):
            factor = tile.everywhere(tile.scales[token], 0, floats_t)
            for group in range(GROUPS):
                dot, correction = dots[token, group], corrections[token, group]
                if dmin is None:
                    five = ir.Constant(correction.type, [5] * ops.lanes)
                    value = b.fmul(tile.to_floats(b.sub(dot, b.shl(correction, five))), d[group])
                else:
                    value = b.fsub(
                        b.fmul(tile.to_floats(dot), d[group]), b.fmul(tile.to_floats(correction), dmin[group])
                    )
                tile.add_to_sum(token, group, value, factor)

    return function((_ARGUMENTS,), types.void, emit)
