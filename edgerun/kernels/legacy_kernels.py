"""Q4_0 and Q8_0 products over activations in blocks of 32 (int8 or i16, an f32 scale; see `quantize_kernels`).

The packed layouts are drawn in `layout.py`, the unpacked ones in `tiles.py`.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.matmul_driver import BlockBytes
from edgerun.kernels.ops import Ops
from edgerun.kernels.tile_driver import build_tiled_matmul
from edgerun.kernels.tiles import legacy_tile


def build_matmul_q4_0(ops: Ops) -> Any:
    """dot = sum q * x - 8 * sum x; the second part comes ready as the block's sum.

    Exact: a lane of i16 takes eight pairs of products of at most 2 * 15 * 127 = 3810, together 30480 < 32768.
    """
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, splat_load, load_halves = ops.load_bytes, ops.splat4, ops.splat_load, ops.load_halves
    low, high, mul_pairs, add_pairs = ops.low_nibbles, ops.high_nibbles, ops.mul_pairs, ops.add_pairs
    plus, plus32, splat_int = ops.add_i16, ops.add_i32, ops.splat1
    ones, to_floats, fma, times = ops.ones, ops.to_floats, ops.fma, ops.mul
    store, store_floats = ops.store_bytes, ops.store_floats
    unpacked = 9 * vec

    @njit(forceinline=True)
    def pair(lo: Any, hi: Any, x: int) -> Any:
        return plus(mul_pairs(lo, splat4(int64(x))), mul_pairs(hi, splat4(int64(x + 16))))

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        v = q + 2 * lanes
        a, b = load(int64(v)), load(int64(v + vec))
        total = plus(pair(low(a), high(a), x), pair(low(b), high(b), x + 4))
        a, b = load(int64(v + 2 * vec)), load(int64(v + 3 * vec))
        total = plus(total, plus(pair(low(a), high(a), x + 8), pair(low(b), high(b), x + 12)))
        dot = plus32(add_pairs(total, ones()), splat_int(int64(c)))
        return fma(times(to_floats(dot), splat_load(int64(s))), load_halves(int64(q)), acc)

    @njit(forceinline=True)
    def unpack(q: int, w: int) -> None:
        v = q + 2 * lanes
        for _ in range(4):
            a = load(int64(v))
            store(int64(w), low(a))
            store(int64(w + 4 * vec), high(a))
            v += vec
            w += vec
        store_floats(int64(w + 4 * vec), load_halves(int64(q)))

    sizes = BlockBytes(weights=2 * lanes + 4 * vec, quants=32, many_quants=32, scales=4, sums=4)
    return build_tiled_matmul(ops, sizes, unpacked, one, unpack, legacy_tile(ops, unpacked, wide=False))


def build_matmul_q8_0(ops: Ops) -> Any:
    """One token: |w| as u8 times x with w's sign: exact, since 2 * 128 * 127 = 32512 < 32768 (one pair a lane, then
    i32). Several: w and x as i16, whose pairs are added in i32; a product fewer, and unpacking w is shared."""
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, splat_load, load_halves = ops.load_bytes, ops.splat4, ops.splat_load, ops.load_halves
    absolute, with_sign, mul_pairs, add_pairs = ops.abs, ops.with_sign, ops.mul_pairs, ops.add_pairs
    plus, ones, to_floats, fma, times = ops.add_i32, ops.ones, ops.to_floats, ops.fma, ops.mul
    widen_low, widen_high, store, store_floats = ops.widen_low, ops.widen_high, ops.store_pairs, ops.store_floats
    unpacked = 17 * vec

    @njit(forceinline=True)
    def dot(q: int, x: int) -> Any:
        w = load(int64(q))
        return add_pairs(mul_pairs(absolute(w), with_sign(splat4(int64(x)), w)), ones())

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        v = q + 2 * lanes
        a = plus(plus(dot(v, x), dot(v + vec, x + 4)), plus(dot(v + 2 * vec, x + 8), dot(v + 3 * vec, x + 12)))
        v += 4 * vec
        b = plus(plus(dot(v, x + 16), dot(v + vec, x + 20)), plus(dot(v + 2 * vec, x + 24), dot(v + 3 * vec, x + 28)))
        return fma(times(to_floats(plus(a, b)), splat_load(int64(s))), load_halves(int64(q)), acc)

    @njit(forceinline=True)
    def unpack(q: int, w: int) -> None:
        v = q + 2 * lanes
        store_floats(int64(w + 16 * vec), load_halves(int64(q)))
        for _ in range(8):
            a = load(int64(v))
            store(int64(w), widen_low(a))
            store(int64(w + vec), widen_high(a))
            v += vec
            w += 2 * vec

    sizes = BlockBytes(weights=2 * lanes + 8 * vec, quants=32, many_quants=64, scales=4, sums=4)
    return build_tiled_matmul(ops, sizes, unpacked, one, unpack, legacy_tile(ops, unpacked, wide=True))
