"""Activations to int8, blocks of 32 ("q8") or of 256 ("q8k"), or to parts in bf16. `formats.activations` draws them.

Arguments (int64 slots): 0 x f32, 1 cols, 2 quants, 3 scales, 4 sums. An item is a row; rows are contiguous.
Codes are rounded to nearest even, with 127 / max |x| in f32. A scale is max |x| / 127. A block of 32 has its scale,
and its sum times the scale before, rounded to 11 significant bits, which are those of the f16 that llama.cpp has there:
else a code of a later layer is rounded the other way now and then, and a recurrent model's answers part from
llama.cpp's by percents. What is too small or too large for f16 has 11 bits all the same.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, int16, int32, int64, njit, types

from edgerun.kernels.formats.activations import (
    PARTS,
    PARTS_BEYOND,
    PARTS_BYTES,
    PARTS_COLS,
    Q8_SUMS_BYTES,
    Q8K_SUMS_BYTES,
)
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.ops.word_ops import WordOps
from edgerun.kernels.simd import I16, I32, I64, function, load_i64, store_f32, store_i16, store_i32


def _helpers(ops: Ops) -> Any:
    lanes = ops.lanes
    load, magnitude, maximum, max_floats = ops.load_floats, ops.magnitude, ops.maximum, ops.max_floats
    times, rounded, to_ints, store_small, splat = ops.mul, ops.round, ops.to_ints, ops.store_as_i8, ops.splat
    plus, zero, zero_ints, sum_ints = ops.add_i32, ops.zero_floats, ops.zero_ints, ops.sum_ints

    @njit(forceinline=True)
    def peak(x: int, n: int) -> Any:
        top = zero()
        for i in range(0, n, lanes):
            top = maximum(top, magnitude(load(int64(x + 4 * i))))
        return max_floats(top)

    @njit(forceinline=True)
    def write(x: int, q: int, n: int, inverse: Any) -> Any:
        total = zero_ints()
        factor = splat(inverse)
        for i in range(0, n, lanes):
            value = to_ints(rounded(times(load(int64(x + 4 * i)), factor)))
            store_small(int64(q + i), value)
            total = plus(total, value)
        return sum_ints(total)

    return peak, write


def build_quantize_q8(ops: Ops) -> Any:
    """Blocks of 32."""
    peak, write = _helpers(ops)

    def quantize_q8(arguments: int, low: int, high: int) -> None:
        x, cols = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        quants, scales = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        sums = load_i64(int64(arguments + 32))
        blocks = cols // 32
        for row in range(low, high):
            for b in range(blocks):
                at = row * blocks + b
                block = x + at * 128
                top = peak(block, 32)
                inverse = float32(127.0) / top if top > float32(0.0) else float32(0.0)
                exact = top / float32(127.0)
                scale = short(exact)
                first = write(block, quants + at * 32, 16, inverse)
                second = write(block + 64, quants + at * 32 + 16, 16, inverse)
                total, to = first + second, sums + at * Q8_SUMS_BYTES
                store_f32(int64(scales + at * 4), scale)
                store_i32(int64(to), int32(-8 * total))
                store_i32(int64(to + 4), int32(-16 * total))
                store_i32(int64(to + 8), int32(-128 * total))
                store_f32(int64(to + 12), short(float32(total) * exact))
                store_i32(int64(to + 16), int32(-16 * first))
                store_i32(int64(to + 20), int32(-16 * second))

    return quantize_q8, kernel_signature()


def build_quantize_q8k(ops: Ops) -> Any:
    """Blocks of 256."""
    peak, write = _helpers(ops)

    def quantize_q8k(arguments: int, low: int, high: int) -> None:
        x, cols = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        quants, scales = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        sums = load_i64(int64(arguments + 32))
        blocks = cols // 256
        for row in range(low, high):
            for b in range(blocks):
                at = row * blocks + b
                block, to = x + at * 1024, sums + at * Q8K_SUMS_BYTES
                top = peak(block, 256)
                inverse = float32(127.0) / top if top > float32(0.0) else float32(0.0)
                store_f32(int64(scales + at * 4), top / float32(127.0))
                total = int32(0)
                for i in range(8):
                    first = write(block + i * 128, quants + at * 256 + i * 32, 16, inverse)
                    second = write(block + i * 128 + 64, quants + at * 256 + i * 32 + 16, 16, inverse)
                    store_i32(int64(to + i * 8), int32(-32 * first))
                    store_i32(int64(to + i * 8 + 4), int32(-32 * second))
                    store_i32(int64(to + 64 + i * 4), int32(-128 * (first + second)))
                    store_i16(int64(to + 96 + 2 * in_pairs(i)), int16(first + second))
                    store_i16(int64(to + 112 + 2 * in_pairs(2 * i)), int16(first))
                    store_i16(int64(to + 112 + 2 * in_pairs(2 * i + 1)), int16(second))
                    total += first + second
                store_i32(int64(to + 144), int32(-8 * total))

    return quantize_q8k, kernel_signature()


def build_quantize_parts(ops: Ops) -> Any:
    """Sums of three bf16; where slot 3 is not 0, as f32 there, too."""
    lanes = ops.lanes
    split, split_wide = _split(lanes, False), _split(lanes, True)

    def quantize_parts(arguments: int, low: int, high: int) -> None:
        x, cols, parts = load_i64(int64(arguments)), load_i64(int64(arguments + 8)), load_i64(int64(arguments + 16))
        wide = load_i64(int64(arguments + 24))
        blocks = (cols + PARTS_COLS - 1) // PARTS_COLS
        for row in range(low, high):
            of_row, to = x + row * cols * 4, parts + row * (blocks * PARTS_BYTES + PARTS_BEYOND)
            of_wide = wide + row * blocks * 2 * PARTS_BYTES
            for column in range(0, blocks * PARTS_COLS, lanes):
                block, within = column // PARTS_COLS, 2 * (column % PARTS_COLS)
                at, count = of_row + 4 * column, max(0, min(lanes, cols - column))
                split(int64(at), int64(count), int64(to + block * PARTS_BYTES + within))
                if wide != 0:
                    split_wide(int64(at), int64(count), int64(of_wide + 2 * (block * PARTS_BYTES + within)))

    return quantize_parts, kernel_signature()


def _split(lanes: int, wide: bool) -> Any:
    """(floats, how many, to) -> None: the parts of some, 0 of those that are not there, as bf16 or f32, one part's 32
    after the other's."""

    def emit(b: Any, x: Any, count: Any, to: Any) -> None:
        e = WordOps(b, lanes)
        left = e.load_some_floats(x, b.trunc(count, I32))
        for part in range(PARTS):
            near, left = e.split_float(left)
            value = near if wide else b.trunc(e.shr(near, 16), ir.VectorType(I16, lanes))
            at = b.add(to, ir.Constant(I64, part * (4 if wide else 2) * PARTS_COLS))
            b.store(value, b.inttoptr(at, value.type.as_pointer())).align = 2

    return function((types.int64,) * 3, types.void, emit)


def _emit_short(b: Any, x: Any) -> Any:
    bits = b.bitcast(x, I32)
    odd = b.and_(b.lshr(bits, ir.Constant(I32, 13)), ir.Constant(I32, 1))
    return b.bitcast(b.and_(b.add(bits, b.add(odd, ir.Constant(I32, 0xFFF))), ir.Constant(I32, -0x2000)), x.type)


short = function((types.float32,), types.float32, _emit_short)
"""An f32 -> the nearest with 11 significant bits, ties to even."""


@njit(forceinline=True)
def in_pairs(i: int) -> int:
    """The place of a sum in the order 0 2 1 3 4 6 5 7 ..."""
    return i // 4 * 4 + i % 4 // 2 + i % 2 * 2
