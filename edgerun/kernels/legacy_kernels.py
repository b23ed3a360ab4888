"""Q4_0 and Q8_0 products over activations in blocks of 32 (int8, an f32 scale; see `quantize_kernels`).

The packed layouts are drawn in `layout.py`.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.layout import WIDE_TOKENS
from edgerun.kernels.matmul_driver import build_matmul
from edgerun.kernels.ops import Ops
from edgerun.kernels.spread_kernels import Wide, add_eight, on_eight


def build_matmul_q4_0(ops: Ops) -> Any:
    """dot = sum q * x - 8 * sum x; the second part, times the activation's scale, comes ready as the block's sum.

    Exact: a lane of i16 takes eight pairs of products of at most 2 * 15 * 127 = 3810, together 30480 < 32768.
    """
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, splat_load, load_halves = ops.load_bytes, ops.splat4, ops.splat_load, ops.load_halves
    low, high, mul_pairs, add_pairs = ops.low_nibbles, ops.high_nibbles, ops.mul_pairs, ops.add_pairs
    plus, ones, to_floats, fma, minus, times = ops.add_i16, ops.ones, ops.to_floats, ops.fma, ops.sub, ops.mul

    @njit(forceinline=True)
    def pair(lo: Any, hi: Any, x: int) -> Any:
        return plus(mul_pairs(lo, splat4(int64(x))), mul_pairs(hi, splat4(int64(x + 16))))

    @njit(forceinline=True)
    def finish(acc: Any, total: Any, scale: Any, s: int, c: int) -> Any:
        value = minus(times(to_floats(add_pairs(total, ones())), splat_load(int64(s))), splat_load(int64(c)))
        return fma(value, scale, acc)

    @njit(forceinline=True)
    def pair4(q: int, x: int, dx: int) -> Any:
        v = load(int64(q))
        lo, hi = low(v), high(v)
        return pair(lo, hi, x), pair(lo, hi, x + dx), pair(lo, hi, x + 2 * dx), pair(lo, hi, x + 3 * dx)

    @njit(forceinline=True)
    def plus4(a: Any, b: Any) -> Any:
        return plus(a[0], b[0]), plus(a[1], b[1]), plus(a[2], b[2]), plus(a[3], b[3])

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        v = q + 2 * lanes
        a, b = load(int64(v)), load(int64(v + vec))
        total = plus(pair(low(a), high(a), x), pair(low(b), high(b), x + 4))
        a, b = load(int64(v + 2 * vec)), load(int64(v + 3 * vec))
        total = plus(total, plus(pair(low(a), high(a), x + 8), pair(low(b), high(b), x + 12)))
        return finish(acc, total, load_halves(int64(q)), s, c)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        v = q + 2 * lanes
        total = pair4(v, x, dx)
        total = plus4(total, pair4(v + vec, x + 4, dx))
        total = plus4(total, pair4(v + 2 * vec, x + 8, dx))
        total = plus4(total, pair4(v + 3 * vec, x + 12, dx))
        scale = load_halves(int64(q))
        return (
            finish(acc[0], total[0], scale, s, c),
            finish(acc[1], total[1], scale, s + ds, c + dc),
            finish(acc[2], total[2], scale, s + 2 * ds, c + 2 * dc),
            finish(acc[3], total[3], scale, s + 3 * ds, c + 3 * dc),
        )

    load_floats, zero, word = ops.load_floats, ops.zero_pairs, WIDE_TOKENS * vec

    @njit(forceinline=True)
    def dot(total: Any, lo: Any, hi: Any, x: int) -> Any:
        return plus(plus(total, mul_pairs(lo, load(int64(x)))), mul_pairs(hi, load(int64(x + 4 * word))))

    @njit(forceinline=True)
    def scaled(acc: Any, total: Any, scale: Any, s: int) -> Any:
        value = minus(times(to_floats(add_pairs(total, ones())), load_floats(int64(s))), load_floats(int64(s + word)))
        return fma(value, scale, acc)

    dots, add = on_eight(vec, dot), add_eight(vec, load_floats, ops.store_floats, scaled)

    @njit(forceinline=True)
    def tile(sums: int, q: int, x: int, step: int, aside: int) -> None:
        total = (zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero())
        for i in range(4):
            v = load(int64(q + 2 * lanes + i * vec))
            total = dots(total, low(v), high(v), x + i * word)
        add(sums, total, load_halves(int64(q)), x + 8 * word)

    return build_matmul(ops, 2 * lanes + 4 * vec, 32, 4, 4, one, four, Wide(tile, sum_words=1))


def build_matmul_q8_0(ops: Ops) -> Any:
    """|w| as u8 times x with w's sign: exact, since 2 * 128 * 127 = 32512 < 32768 (one pair a lane, then i32).

    Eight tokens at a time x goes through an exclusive or with w's sign instead, which more units of a processor can do
    than `psignb`: it gives -x - 1 for negative w, so the product misses |w| there. The sum of these is the same for all
    tokens: what is kept aside. (A pair is at least 2 * 128 * -128 = -32768, at most 2 * 128 * 127.)
    """
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, splat_load, load_halves = ops.load_bytes, ops.splat4, ops.splat_load, ops.load_halves
    absolute, with_sign, mul_pairs, add_pairs = ops.abs, ops.with_sign, ops.mul_pairs, ops.add_pairs
    plus, ones, to_floats, fma, times = ops.add_i32, ops.ones, ops.to_floats, ops.fma, ops.mul

    @njit(forceinline=True)
    def dot(w: Any, size: Any, x: int) -> Any:
        return add_pairs(mul_pairs(size, with_sign(splat4(int64(x)), w)), ones())

    @njit(forceinline=True)
    def dot4(q: int, x: int, dx: int) -> Any:
        w = load(int64(q))
        size = absolute(w)
        return dot(w, size, x), dot(w, size, x + dx), dot(w, size, x + 2 * dx), dot(w, size, x + 3 * dx)

    @njit(forceinline=True)
    def plus4(a: Any, b: Any) -> Any:
        return plus(a[0], b[0]), plus(a[1], b[1]), plus(a[2], b[2]), plus(a[3], b[3])

    @njit(forceinline=True)
    def dot1(q: int, x: int) -> Any:
        w = load(int64(q))
        return dot(w, absolute(w), x)

    @njit(forceinline=True)
    def finish(acc: Any, total: Any, scale: Any, s: int) -> Any:
        return fma(times(to_floats(total), splat_load(int64(s))), scale, acc)

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        v = q + 2 * lanes
        a = plus(plus(dot1(v, x), dot1(v + vec, x + 4)), plus(dot1(v + 2 * vec, x + 8), dot1(v + 3 * vec, x + 12)))
        v += 4 * vec
        b = plus(
            plus(dot1(v, x + 16), dot1(v + vec, x + 20)), plus(dot1(v + 2 * vec, x + 24), dot1(v + 3 * vec, x + 28))
        )
        return finish(acc, plus(a, b), load_halves(int64(q)), s)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        v = q + 2 * lanes
        total = dot4(v, x, dx)
        total = plus4(total, dot4(v + vec, x + 4, dx))
        total = plus4(total, dot4(v + 2 * vec, x + 8, dx))
        total = plus4(total, dot4(v + 3 * vec, x + 12, dx))
        total = plus4(total, dot4(v + 4 * vec, x + 16, dx))
        total = plus4(total, dot4(v + 5 * vec, x + 20, dx))
        total = plus4(total, dot4(v + 6 * vec, x + 24, dx))
        total = plus4(total, dot4(v + 7 * vec, x + 28, dx))
        scale = load_halves(int64(q))
        return (
            finish(acc[0], total[0], scale, s),
            finish(acc[1], total[1], scale, s + ds),
            finish(acc[2], total[2], scale, s + 2 * ds),
            finish(acc[3], total[3], scale, s + 3 * ds),
        )

    negative, either, minus, plus16 = ops.negative, ops.xor_bytes, ops.sub_i32, ops.add_i16
    load_ints, load_floats, word = ops.load_ints, ops.load_floats, WIDE_TOKENS * vec
    zero, zero_pairs, in_turn = ops.zero_ints, ops.zero_pairs, ops.in_turn

    @njit(forceinline=True)
    def missed(q: int) -> Any:
        total = zero_pairs()
        for i in range(8):
            w = load(int64(q + 2 * lanes + i * vec))
            total = plus16(total, mul_pairs(absolute(w), negative(w)))
        return minus(zero(), add_pairs(total, ones()))

    @njit(forceinline=True)
    def masked(total: Any, size: Any, mask: Any, x: int) -> Any:
        return in_turn(plus(total, add_pairs(mul_pairs(size, either(load(int64(x)), mask)), ones())))

    @njit(forceinline=True)
    def scaled(acc: Any, total: Any, scale: Any, s: int) -> Any:
        return fma(times(to_floats(total), load_floats(int64(s))), scale, acc)

    dots, add = on_eight(vec, masked), add_eight(vec, load_floats, ops.store_floats, scaled)

    @njit(forceinline=True)
    def row(total: Any, v: int, x: int) -> Any:
        w = load(int64(v))
        return dots(total, absolute(w), negative(w), x)

    @njit(forceinline=True)
    def tile(sums: int, q: int, x: int, step: int, aside: int) -> None:
        start = load_ints(int64(aside))
        total = (start, start, start, start, start, start, start, start)
        v = q + 2 * lanes
        for _ in range(2):
            total = row(total, v, x)
            total = row(total, v + vec, x + word)
            total = row(total, v + 2 * vec, x + 2 * word)
            total = row(total, v + 3 * vec, x + 3 * word)
            v += 4 * vec
            x += 4 * word
        add(sums, total, load_halves(int64(q)), x)

    return build_matmul(ops, 2 * lanes + 8 * vec, 32, 4, 4, one, four, Wide(tile, aside=missed))
