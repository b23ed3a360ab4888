"""Numbers for the wire and from it (`eighths.py`): rounded; and what all devices sent, added up and rounded at once."""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.eighths import BLOCK, SMALLEST
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64, store_f32

_SMALLEST = float(SMALLEST)
_NO_NUMBER = float("nan")


def _part_of_block(ops: Ops) -> tuple[Any, Any]:
    """Loads and stores of the first n of some lanes."""
    return ops.load_floats_masked, ops.store_floats_masked


def _whole_block(ops: Ops) -> tuple[Any, Any]:
    """The same where all are there."""
    load_all, store_all = ops.load_floats, ops.store_floats

    @njit(forceinline=True)
    def load(address: int, n: int) -> Any:
        return load_all(int64(address))

    @njit(forceinline=True)
    def store(address: int, value: Any, n: int) -> None:
        store_all(int64(address), value)

    return load, store


def _writer(ops: Ops, load: Any) -> Any:
    """write(x, n, scale, levels): the first n of a block of f32. Of levels a whole vector is always written."""
    lanes, magnitude, maximum, max_floats = ops.lanes, ops.magnitude, ops.maximum, ops.max_floats
    times, plus, rounded, to_ints = ops.mul, ops.add, ops.round, ops.to_ints
    store_small, splat, zero, sum_floats = ops.store_as_i8, ops.splat, ops.zero_floats, ops.sum_floats
    zero_ints = ops.zero_ints

    @njit(forceinline=True)
    def write(x: int, n: int, scale_at: int, levels: int) -> None:
        top, odd = zero(), zero()
        for i in range(0, n, lanes):
            v = load(int64(x + 4 * i), int64(n - i))
            top = maximum(top, magnitude(v))
            odd = plus(odd, times(v, zero()))  # 0, or what is no number where v is not finite
        scale = float32(max_floats(top) / float32(127.0))
        if sum_floats(odd) != float32(0.0):
            store_f32(int64(scale_at), float32(_NO_NUMBER))
            for i in range(0, n, lanes):
                store_small(int64(levels + i), zero_ints())
            return
        inverse = float32(0.0)
        if scale > float32(_SMALLEST):
            inverse = float32(float32(1.0) / scale)
        store_f32(int64(scale_at), scale)
        factor = splat(inverse)
        for i in range(0, n, lanes):
            store_small(int64(levels + i), to_ints(rounded(times(load(int64(x + 4 * i), int64(n - i)), factor))))

    return write


def build_round_eighths(ops: Ops) -> Any:
    """See `abi.RoundEighths`."""
    write, write_some = _writer(ops, _whole_block(ops)[0]), _writer(ops, _part_of_block(ops)[0])

    def round_eighths(arguments: int, low: int, high: int) -> None:
        x, count, out = load_i64(int64(arguments)), load_i64(int64(arguments + 8)), load_i64(int64(arguments + 16))
        levels = out + 4 * ((count + BLOCK - 1) // BLOCK)
        for block in range(low, min(high, count // BLOCK)):
            write(x + 4 * BLOCK * block, BLOCK, out + 4 * block, levels + BLOCK * block)
        if high > count // BLOCK:
            last = high - 1
            write_some(x + 4 * BLOCK * last, count - BLOCK * last, out + 4 * last, levels + BLOCK * last)

    return round_eighths, kernel_signature()


def _adder(ops: Ops, load: Any, store: Any) -> Any:
    """add(parts, how many, block, n, levels, to, rounded): a block of n numbers; levels: where its are in a part."""
    lanes, write = ops.lanes, _writer(ops, load)
    load_bytes, splat_load, times, plus = ops.load_bytes_as_floats, ops.splat_load, ops.mul, ops.add

    @njit(forceinline=True)
    def number(part: int, block: int, levels: int) -> Any:
        return times(load_bytes(int64(part + levels)), splat_load(int64(part + 4 * block)))

    @njit(forceinline=True)
    def add(parts: int, count: int, block: int, n: int, levels: int, to: int, rounded: int) -> None:
        for i in range(0, n, lanes):
            total = number(load_i64(int64(parts)), block, levels + i)
            for part in range(1, count):
                total = plus(total, number(load_i64(int64(parts + 8 * part)), block, levels + i))
            store(int64(to + 4 * i), total, int64(n - i))
        if rounded != 0:
            write(to, n, rounded + 4 * block, rounded + levels)
            for i in range(0, n, lanes):
                store(int64(to + 4 * i), number(rounded, block, levels + i), int64(n - i))

    return add


def build_sum_eighths(ops: Ops) -> Any:
    """See `abi.SumEighths`."""
    add, add_some = _adder(ops, *_whole_block(ops)), _adder(ops, *_part_of_block(ops))

    def sum_eighths(arguments: int, low: int, high: int) -> None:
        parts, count_parts = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        count, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        rounded = load_i64(int64(arguments + 32))
        levels = 4 * ((count + BLOCK - 1) // BLOCK)
        for block in range(low, min(high, count // BLOCK)):
            first = BLOCK * block
            add(parts, count_parts, block, BLOCK, levels + first, out + 4 * first, rounded)
        if high > count // BLOCK:
            last, first = high - 1, BLOCK * (high - 1)
            add_some(parts, count_parts, last, count - first, levels + first, out + 4 * first, rounded)

    return sum_eighths, kernel_signature()
