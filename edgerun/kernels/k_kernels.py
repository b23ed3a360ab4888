"""Q4_K, Q5_K and Q6_K products over activations in blocks of 256 (int8, one f32 scale, sums; see `quantize_kernels`).

Sums of a block's activations: sixteen i16 over 16 each, then eight i16 over 32 each. The packed layouts are drawn
in `layout.py`. All of a superblock is exact integer arithmetic; a lane of i32 stays below 2^26.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.layout import WIDE_TOKENS
from edgerun.kernels.matmul_driver import build_matmul
from edgerun.kernels.ops import Ops
from edgerun.kernels.spread_kernels import Wide, add_eight, on_eight

SUMS_BYTES = 48  # of a block: (16 + 8) i16


def _finish(ops: Ops) -> Any:
    """acc + activation scale * (d * dot - dmin * mins)."""
    load_halves, splat_load, to_floats = ops.load_halves, ops.splat_load, ops.to_floats
    fma, times, minus = ops.fma, ops.mul, ops.sub
    lanes = ops.lanes

    @njit(forceinline=True)
    def finish(acc: Any, dot: Any, mins: Any, q: int, s: int) -> Any:
        value = minus(
            times(to_floats(dot), load_halves(int64(q))), times(to_floats(mins), load_halves(int64(q + 2 * lanes)))
        )
        return fma(value, splat_load(int64(s)), acc)

    return finish


def _min_sums(ops: Ops) -> Any:
    """sum over the eight sub-blocks of min * sum of activations: four products of neighbouring pairs."""
    lanes = ops.lanes
    load_pairs, splat2, add_pairs, plus = ops.load_pairs_u8, ops.splat2, ops.add_pairs, ops.add_i32

    @njit(forceinline=True)
    def min_sums(mins: int, c: int) -> Any:
        a = plus(
            add_pairs(load_pairs(int64(mins)), splat2(int64(c + 32))),
            add_pairs(load_pairs(int64(mins + 2 * lanes)), splat2(int64(c + 36))),
        )
        b = plus(
            add_pairs(load_pairs(int64(mins + 4 * lanes)), splat2(int64(c + 40))),
            add_pairs(load_pairs(int64(mins + 6 * lanes)), splat2(int64(c + 44))),
        )
        return plus(a, b)

    return min_sums


def _wide_finish(ops: Ops) -> Any:
    """`_finish` for eight tokens, and products 0 again."""
    load_halves, load_floats, to_floats, load_mins = ops.load_halves, ops.load_floats, ops.to_floats, ops.load_pairs_u8
    fma, times, minus, plus, add_pairs = ops.fma, ops.mul, ops.sub, ops.add_i32, ops.add_pairs
    load_pairs, load_ints, store_ints, store_floats = ops.load_pairs, ops.load_ints, ops.store_ints, ops.store_floats
    zero, lanes, vec = ops.zero_ints, ops.lanes, 4 * ops.lanes
    word = WIDE_TOKENS * vec

    @njit(forceinline=True)
    def finish(sums: int, products: int, q: int, s: int) -> None:
        scale, min_scale = load_halves(int64(q)), load_halves(int64(q + 2 * lanes))
        m = q + 12 * lanes
        m0, m1 = load_mins(int64(m)), load_mins(int64(m + 2 * lanes))
        m2, m3 = load_mins(int64(m + 4 * lanes)), load_mins(int64(m + 6 * lanes))
        for at in range(0, word, vec):
            c = s + word + at
            a = plus(add_pairs(m0, load_pairs(int64(c))), add_pairs(m1, load_pairs(int64(c + word))))
            b = plus(add_pairs(m2, load_pairs(int64(c + 2 * word))), add_pairs(m3, load_pairs(int64(c + 3 * word))))
            dot = load_ints(int64(products + at))
            value = minus(times(to_floats(dot), scale), times(to_floats(plus(a, b)), min_scale))
            store_floats(int64(sums + at), fma(value, load_floats(int64(s + at)), load_floats(int64(sums + at))))
            store_ints(int64(products + at), zero())

    return finish


def _add_products(ops: Ops) -> Any:
    """Totals of eight tokens, times a scale, added to the eight i32 vectors at an address: (into, totals, scale, 0)."""
    plus, add_pairs = ops.add_i32, ops.add_pairs

    @njit(forceinline=True)
    def product(acc: Any, total: Any, scale: Any, _: int) -> Any:
        return plus(acc, add_pairs(total, scale))

    return add_eight(4 * ops.lanes, ops.load_ints, ops.store_ints, product)


def build_matmul_q4_k(ops: Ops) -> Any:
    """Per sub-block of 32 the nibbles as in Q4_0 (8 * 3810 = 30480 < 32768 in i16), then times the 6-bit scale."""
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, load_scales = ops.load_bytes, ops.splat4, ops.load_scales_u8
    low, high, mul_pairs, add_pairs = ops.low_nibbles, ops.high_nibbles, ops.mul_pairs, ops.add_pairs
    plus16, plus, zero = ops.add_i16, ops.add_i32, ops.zero_ints
    finish, min_sums = _finish(ops), _min_sums(ops)
    scales_at, mins_at, nibbles_at = 4 * lanes, 12 * lanes, 20 * lanes

    @njit(forceinline=True)
    def pair(lo: Any, hi: Any, x: int) -> Any:
        return plus16(mul_pairs(lo, splat4(int64(x))), mul_pairs(hi, splat4(int64(x + 16))))

    @njit(forceinline=True)
    def pair4(q: int, x: int, dx: int) -> Any:
        v = load(int64(q))
        lo, hi = low(v), high(v)
        return pair(lo, hi, x), pair(lo, hi, x + dx), pair(lo, hi, x + 2 * dx), pair(lo, hi, x + 3 * dx)

    @njit(forceinline=True)
    def plus4(a: Any, b: Any) -> Any:
        return plus16(a[0], b[0]), plus16(a[1], b[1]), plus16(a[2], b[2]), plus16(a[3], b[3])

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        dot = zero()
        v = q + nibbles_at
        for j in range(8):
            a, b = load(int64(v)), load(int64(v + vec))
            total = plus16(pair(low(a), high(a), x), pair(low(b), high(b), x + 4))
            a, b = load(int64(v + 2 * vec)), load(int64(v + 3 * vec))
            total = plus16(total, plus16(pair(low(a), high(a), x + 8), pair(low(b), high(b), x + 12)))
            dot = plus(dot, add_pairs(total, load_scales(int64(q + scales_at + j * lanes))))
            v += 4 * vec
            x += 32
        return finish(acc, dot, min_sums(q + mins_at, c), q, s)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        d0, d1, d2, d3 = zero(), zero(), zero(), zero()
        v = q + nibbles_at
        for j in range(8):
            total = pair4(v, x, dx)
            total = plus4(total, pair4(v + vec, x + 4, dx))
            total = plus4(total, pair4(v + 2 * vec, x + 8, dx))
            total = plus4(total, pair4(v + 3 * vec, x + 12, dx))
            scale = load_scales(int64(q + scales_at + j * lanes))
            d0 = plus(d0, add_pairs(total[0], scale))
            d1 = plus(d1, add_pairs(total[1], scale))
            d2 = plus(d2, add_pairs(total[2], scale))
            d3 = plus(d3, add_pairs(total[3], scale))
            v += 4 * vec
            x += 32
        m = q + mins_at
        return (
            finish(acc[0], d0, min_sums(m, c), q, s),
            finish(acc[1], d1, min_sums(m, c + dc), q, s + ds),
            finish(acc[2], d2, min_sums(m, c + 2 * dc), q, s + 2 * ds),
            finish(acc[3], d3, min_sums(m, c + 3 * dc), q, s + 3 * ds),
        )

    none, add, word = ops.zero_pairs, _add_products(ops), WIDE_TOKENS * vec

    @njit(forceinline=True)
    def nibbles(total: Any, lo: Any, hi: Any, x: int) -> Any:
        return plus16(plus16(total, mul_pairs(lo, load(int64(x)))), mul_pairs(hi, load(int64(x + 4 * word))))

    totals = on_eight(vec, nibbles)

    @njit(forceinline=True)
    def tile(into: int, q: int, x: int, step: int, aside: int) -> None:
        total = (none(), none(), none(), none(), none(), none(), none(), none())
        for i in range(4):
            v = load(int64(q + nibbles_at + (4 * step + i) * vec))
            total = totals(total, low(v), high(v), x + i * word)
        add(into, total, load_scales(int64(q + scales_at + step * lanes)), 0)

    wide = Wide(tile, _wide_finish(ops), first_sum=8, sum_words=4)
    return build_matmul(ops, 148 * lanes, 256, 4, SUMS_BYTES, one, four, wide)


def build_matmul_q5_k(ops: Ops) -> Any:
    """As Q4_K with a fifth bit from a byte vector whose bit t belongs to the sub-block's vector t. Four pairs of at
    most 2 * 31 * 127 = 7874 a lane of i16 (31496 < 32768), so a sub-block takes two sums."""
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, load_scales, either = ops.load_bytes, ops.splat4, ops.load_scales_u8, ops.or_bytes
    low, high, mul_pairs, add_pairs = ops.low_nibbles, ops.high_nibbles, ops.mul_pairs, ops.add_pairs
    plus16, plus, zero = ops.add_i16, ops.add_i32, ops.zero_ints
    fifth0, fifth1, fifth2, fifth3 = (ops.bit_field(t - 4, 16) for t in range(4))
    fifth4, fifth5, fifth6, fifth7 = (ops.bit_field(t - 4, 16) for t in range(4, 8))
    finish, min_sums = _finish(ops), _min_sums(ops)
    scales_at, mins_at, high_at, nibbles_at = 4 * lanes, 12 * lanes, 20 * lanes, 52 * lanes

    @njit(forceinline=True)
    def pair(lo: Any, hi: Any, x: int) -> Any:
        return plus16(mul_pairs(lo, splat4(int64(x))), mul_pairs(hi, splat4(int64(x + 16))))

    @njit(forceinline=True)
    def quad(lo: Any, hi: Any, lo2: Any, hi2: Any, x: int, scale: Any) -> Any:
        return add_pairs(plus16(pair(lo, hi, x), pair(lo2, hi2, x + 4)), scale)

    @njit(forceinline=True)
    def first_half(v: int, bits: Any) -> Any:
        a, b = load(int64(v)), load(int64(v + vec))
        return (
            either(low(a), fifth0(bits)),
            either(high(a), fifth4(bits)),
            either(low(b), fifth1(bits)),
            either(high(b), fifth5(bits)),
        )

    @njit(forceinline=True)
    def second_half(v: int, bits: Any) -> Any:
        a, b = load(int64(v)), load(int64(v + vec))
        return (
            either(low(a), fifth2(bits)),
            either(high(a), fifth6(bits)),
            either(low(b), fifth3(bits)),
            either(high(b), fifth7(bits)),
        )

    @njit(forceinline=True)
    def add_half(dot: Any, w: Any, x: int, scale: Any) -> Any:
        return plus(dot, quad(w[0], w[1], w[2], w[3], x, scale))

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        dot = zero()
        v = q + nibbles_at
        for j in range(8):
            bits = load(int64(q + high_at + j * vec))
            scale = load_scales(int64(q + scales_at + j * lanes))
            dot = add_half(dot, first_half(v, bits), x, scale)
            dot = add_half(dot, second_half(v + 2 * vec, bits), x + 8, scale)
            v += 4 * vec
            x += 32
        return finish(acc, dot, min_sums(q + mins_at, c), q, s)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        d0, d1, d2, d3 = zero(), zero(), zero(), zero()
        v = q + nibbles_at
        for j in range(8):
            bits = load(int64(q + high_at + j * vec))
            scale = load_scales(int64(q + scales_at + j * lanes))
            w = first_half(v, bits)
            d0 = add_half(d0, w, x, scale)
            d1 = add_half(d1, w, x + dx, scale)
            d2 = add_half(d2, w, x + 2 * dx, scale)
            d3 = add_half(d3, w, x + 3 * dx, scale)
            w = second_half(v + 2 * vec, bits)
            d0 = add_half(d0, w, x + 8, scale)
            d1 = add_half(d1, w, x + dx + 8, scale)
            d2 = add_half(d2, w, x + 2 * dx + 8, scale)
            d3 = add_half(d3, w, x + 3 * dx + 8, scale)
            v += 4 * vec
            x += 32
        m = q + mins_at
        return (
            finish(acc[0], d0, min_sums(m, c), q, s),
            finish(acc[1], d1, min_sums(m, c + dc), q, s + ds),
            finish(acc[2], d2, min_sums(m, c + 2 * dc), q, s + 2 * ds),
            finish(acc[3], d3, min_sums(m, c + 3 * dc), q, s + 3 * ds),
        )

    none, add, word = ops.zero_pairs, _add_products(ops), WIDE_TOKENS * vec

    @njit(forceinline=True)
    def wide_pair(lo: Any, hi: Any, x: int) -> Any:
        return plus16(mul_pairs(lo, load(int64(x))), mul_pairs(hi, load(int64(x + 4 * word))))

    @njit(forceinline=True)
    def wide_quad(total: Any, w: Any, _: int, x: int) -> Any:
        return plus16(total, plus16(wide_pair(w[0], w[1], x), wide_pair(w[2], w[3], x + word)))

    quads = on_eight(vec, wide_quad)

    @njit(forceinline=True)
    def tile(into: int, q: int, x: int, step: int, aside: int) -> None:
        v = q + nibbles_at + 4 * step * vec
        bits = load(int64(q + high_at + step * vec))
        scale = load_scales(int64(q + scales_at + step * lanes))
        start = (none(), none(), none(), none(), none(), none(), none(), none())
        add(into, quads(start, first_half(v, bits), 0, x), scale, 0)
        add(into, quads(start, second_half(v + 2 * vec, bits), 0, x + 2 * word), scale, 0)

    wide = Wide(tile, _wide_finish(ops), first_sum=8, sum_words=4)
    return build_matmul(ops, 180 * lanes, 256, 4, SUMS_BYTES, one, four, wide)


def build_matmul_q6_k(ops: Ops) -> Any:
    """dot = sum scale * (q - 32) * x, q in 0..63: two pairs of at most 2 * 63 * 127 = 16002 a lane of i16, and the
    32 taken off with the activations' sums.

    A chunk of 32 weights (two scales) is four nibble vectors (low nibbles: weights 4 t + j, high: 16 + 4 t + j) and
    two vectors of high bits: vector h holds, from its low bits up, those of low 2 h, high 2 h, low 2 h + 1 and
    high 2 h + 1.
    """
    lanes, vec = ops.lanes, 4 * ops.lanes
    load, splat4, either = ops.load_bytes, ops.splat4, ops.or_bytes
    dup_even, dup_odd = ops.dup_even, ops.dup_odd
    low, high, mul_pairs, add_pairs = ops.low_nibbles, ops.high_nibbles, ops.mul_pairs, ops.add_pairs
    plus16, plus, zero, minus, shift5 = ops.add_i16, ops.add_i32, ops.zero_ints, ops.sub_i32, ops.shl_i32(5)
    bits0, bits1, bits2, bits3 = (ops.bit_field(2 * t - 4, 48) for t in range(4))
    load_pairs, splat2 = ops.load_pairs_i8, ops.splat2
    load_halves, splat_load, to_floats, fma, times = ops.load_halves, ops.splat_load, ops.to_floats, ops.fma, ops.mul
    scales_at, high_at, nibbles_at = 2 * lanes, 18 * lanes, 82 * lanes

    @njit(forceinline=True)
    def weights(v: int, bits: Any) -> Any:
        a, b = load(int64(v)), load(int64(v + vec))
        return (
            either(low(a), bits0(bits)),
            either(high(a), bits1(bits)),
            either(low(b), bits2(bits)),
            either(high(b), bits3(bits)),
        )

    @njit(forceinline=True)
    def add_quad(dot: Any, w: Any, x: int, low_scale: Any, high_scale: Any) -> Any:
        first = plus16(mul_pairs(w[0], splat4(int64(x))), mul_pairs(w[2], splat4(int64(x + 4))))
        second = plus16(mul_pairs(w[1], splat4(int64(x + 16))), mul_pairs(w[3], splat4(int64(x + 20))))
        return plus(dot, plus(add_pairs(first, low_scale), add_pairs(second, high_scale)))

    @njit(forceinline=True)
    def scaled_sums(p: int, c: int) -> Any:
        total = zero()
        for j in range(8):
            total = plus(total, add_pairs(load_pairs(int64(p + 2 * j * lanes)), splat2(int64(c + 4 * j))))
        return shift5(total)

    @njit(forceinline=True)
    def finish(acc: Any, dot: Any, q: int, s: int, c: int) -> Any:
        value = to_floats(minus(dot, scaled_sums(q + scales_at, c)))
        return fma(times(value, load_halves(int64(q))), splat_load(int64(s)), acc)

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        dot = zero()
        v, h, p = q + nibbles_at, q + high_at, q + scales_at
        for _ in range(8):
            scales = load_pairs(int64(p))
            first, second = dup_even(scales), dup_odd(scales)
            dot = add_quad(dot, weights(v, load(int64(h))), x, first, second)
            dot = add_quad(dot, weights(v + 2 * vec, load(int64(h + vec))), x + 8, first, second)
            v += 4 * vec
            h += 2 * vec
            p += 2 * lanes
            x += 32
        return finish(acc, dot, q, s, c)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        d0, d1, d2, d3 = zero(), zero(), zero(), zero()
        v, h, p = q + nibbles_at, q + high_at, q + scales_at
        for _ in range(8):
            scales = load_pairs(int64(p))
            first, second = dup_even(scales), dup_odd(scales)
            w = weights(v, load(int64(h)))
            d0 = add_quad(d0, w, x, first, second)
            d1 = add_quad(d1, w, x + dx, first, second)
            d2 = add_quad(d2, w, x + 2 * dx, first, second)
            d3 = add_quad(d3, w, x + 3 * dx, first, second)
            w = weights(v + 2 * vec, load(int64(h + vec)))
            d0 = add_quad(d0, w, x + 8, first, second)
            d1 = add_quad(d1, w, x + dx + 8, first, second)
            d2 = add_quad(d2, w, x + 2 * dx + 8, first, second)
            d3 = add_quad(d3, w, x + 3 * dx + 8, first, second)
            v += 4 * vec
            h += 2 * vec
            p += 2 * lanes
            x += 32
        return (
            finish(acc[0], d0, q, s, c),
            finish(acc[1], d1, q, s + ds, c + dc),
            finish(acc[2], d2, q, s + 2 * ds, c + 2 * dc),
            finish(acc[3], d3, q, s + 3 * ds, c + 3 * dc),
        )

    word, load_words, load_floats, store_floats = WIDE_TOKENS * vec, ops.load_pairs, ops.load_floats, ops.store_floats
    none, load_ints, store_ints = ops.zero_pairs, ops.load_ints, ops.store_ints

    @njit(forceinline=True)
    def two(total: Any, a: Any, b: Any, x: int) -> Any:
        return plus16(total, plus16(mul_pairs(a, load(int64(x))), mul_pairs(b, load(int64(x + word)))))

    twos, add = on_eight(vec, two), _add_products(ops)

    @njit(forceinline=True)
    def tile(into: int, q: int, x: int, step: int, aside: int) -> None:
        v, h = q + nibbles_at + 4 * step * vec, q + high_at + 2 * step * vec
        scales = load_pairs(int64(q + scales_at + 2 * step * lanes))
        start = (none(), none(), none(), none(), none(), none(), none(), none())
        for half in range(2):
            w = weights(v + 2 * half * vec, load(int64(h + half * vec)))
            at = x + 2 * half * word
            add(into, twos(start, w[0], w[2], at), dup_even(scales), 0)
            add(into, twos(start, w[1], w[3], at + 4 * word), dup_odd(scales), 0)

    @njit(forceinline=True)
    def wide_finish(sums: int, products: int, q: int, s: int) -> None:
        scale = load_halves(int64(q))
        for at in range(0, word, vec):
            beyond = zero()
            for j in range(8):
                sixteen = load_words(int64(s + (1 + j) * word + at))
                beyond = plus(beyond, add_pairs(load_pairs(int64(q + scales_at + 2 * j * lanes)), sixteen))
            value = to_floats(minus(load_ints(int64(products + at)), shift5(beyond)))
            acc = load_floats(int64(sums + at))
            store_floats(int64(sums + at), fma(times(value, scale), load_floats(int64(s + at)), acc))
            store_ints(int64(products + at), zero())

    wide = Wide(tile, wide_finish, sum_words=8)
    return build_matmul(ops, 210 * lanes, 256, 4, SUMS_BYTES, one, four, wide)
