"""What attention is made of where keys or values are quantised (`kv_formats`): sums over codes as they lie.

The order of a row's sums, for one row and for many:

- a score begins with the query times the mean that was taken off the block's keys (0 where none was); then for each
  group, and for each half of it in q4_0, one chain over the codes is multiplied by the position's scale and added;
- a value's scale is multiplied with the position's weight first; then codes are summed in the order of positions.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.attention_chains import build_chains, build_load_two
from edgerun.kernels.attention_layout import KEYS
from edgerun.kernels.kv_formats import GROUP, KvFormat
from edgerun.kernels.kv_kernels import block_bytes
from edgerun.kernels.ops import Ops

_ROW = 4 * KEYS  # bytes of a row of weights
_SCALES = 2 * KEYS  # bytes of a group's scales


def build_shift(ops: Ops, rotated: bool) -> Any:
    """shift(q, block, dim, format): the query times the mean of a block of keys; 0 for keys without."""
    lanes, load, load_halves, fma = ops.lanes, ops.load_floats, ops.load_halves, ops.fma
    zero, sum_floats = ops.zero_floats, ops.sum_floats

    @njit(forceinline=True)
    def shift(q: int, block: int, dim: int, format: int) -> Any:
        if not rotated:
            return float32(0.0)
        means, total = block + block_bytes(format, dim), zero()
        for i in range(0, dim, lanes):
            total = fma(load(int64(q + 4 * i)), load_halves(int64(means + 2 * i)), total)
        return sum_floats(total)

    return shift


def build_scaled(ops: Ops) -> Any:
    """scaled(rows, weights, scales, out): rows of KEYS weights, each times the f16 scale of its position."""
    lanes, load, load_halves = ops.lanes, ops.load_floats, ops.load_halves
    store, times = ops.store_floats, ops.mul

    @njit(forceinline=True)
    def scaled(rows: int, weights: int, scales: int, out: int) -> None:
        for j in range(0, KEYS, lanes):
            scale = load_halves(int64(scales + 2 * j))
            for row in range(rows):
                at = row * _ROW + 4 * j
                store(int64(out + at), times(load(int64(weights + at)), scale))

    return scaled


def build_scores(ops: Ops, format: KvFormat) -> Any:
    """scores(rows, q, dq, block, dim, begin, end, out): of up to four rows of q, dq bytes apart, with a block of keys:
    out (4, KEYS), from a multiple of four vectors up to `begin` on."""
    lanes, load_halves, store, fma, splat = ops.lanes, ops.load_halves, ops.store_floats, ops.fma, ops.splat
    bytes_of, low_of, high_of = (
        ops.load_bytes_as_floats,
        ops.load_low_nibbles_as_floats,
        ops.load_high_nibbles_as_floats,
    )
    nibbles, number = format.bits == 4, format.number
    part = GROUP // 2 if nibbles else GROUP  # dimensions of one chain
    group_bytes = _SCALES + part * KEYS
    first = low_of if nibbles else bytes_of
    shift = build_shift(ops, format.is_rotated)

    of_first, of_more = (build_chains(ops, build_load_two(each, lanes)) for each in (first, high_of))
    four, two, one = of_first.four, of_first.two_twice, of_first.one_twice
    four_more, two_more, one_more = of_more.four, of_more.two_twice, of_more.one_twice

    @njit(forceinline=True)
    def add_eight(s: Any, r: Any, t: Any) -> Any:
        """Scales of two vectors, in turn."""
        t0, t1, t2, t3 = fma(s[0], r[0], t[0]), fma(s[1], r[1], t[1]), fma(s[0], r[2], t[2]), fma(s[1], r[3], t[3])
        t4, t5, t6, t7 = fma(s[2], r[4], t[4]), fma(s[3], r[5], t[5]), fma(s[2], r[6], t[6]), fma(s[3], r[7], t[7])
        return t0, t1, t2, t3, t4, t5, t6, t7

    @njit(forceinline=True)
    def put(out: int, row: int, j: int, a: Any, b: Any) -> None:
        at = out + row * _ROW + 4 * j
        store(int64(at), a)
        store(int64(at + 4 * lanes), b)

    @njit(forceinline=True)
    def scales_of(at: int, j: int) -> Any:
        return load_halves(int64(at + 2 * j)), load_halves(int64(at + 2 * (j + lanes)))

    @njit(forceinline=True)
    def scores_of_four(q: int, dq: int, block: int, dim: int, begin: int, end: int, out: int) -> None:
        h0, h1 = splat(shift(q, block, dim, number)), splat(shift(q + dq, block, dim, number))
        h2, h3 = splat(shift(q + 2 * dq, block, dim, number)), splat(shift(q + 3 * dq, block, dim, number))
        for j in range(begin // (2 * lanes) * (2 * lanes), end, 2 * lanes):
            t = (h0, h0, h1, h1, h2, h2, h3, h3)
            at, x = block, q
            for _ in range(0, dim, GROUP):
                a, b = scales_of(at, j)
                s, codes = (a, b, a, b), at + _SCALES + j
                t = add_eight(s, four((x, x + dq, x + 2 * dq, x + 3 * dq), part, codes, KEYS), t)
                if nibbles:
                    y = x + 4 * part
                    t = add_eight(s, four_more((y, y + dq, y + 2 * dq, y + 3 * dq), part, codes, KEYS), t)
                at += group_bytes
                x += 4 * GROUP
            put(out, 0, j, t[0], t[1])
            put(out, 1, j, t[2], t[3])
            put(out, 2, j, t[4], t[5])
            put(out, 3, j, t[6], t[7])

    @njit(forceinline=True)
    def scores_of_two(q: int, dq: int, block: int, dim: int, begin: int, end: int, out: int) -> None:
        h0, h1 = splat(shift(q, block, dim, number)), splat(shift(q + dq, block, dim, number))
        for j in range(begin // (4 * lanes) * (4 * lanes), end, 4 * lanes):
            k = j + 2 * lanes
            t = (h0, h0, h1, h1, h0, h0, h1, h1)
            at, x = block, q
            for _ in range(0, dim, GROUP):
                a, b = scales_of(at, j)
                c, d = scales_of(at, k)
                s, codes = (a, b, c, d), at + _SCALES
                t = add_eight(s, two((x, x + dq), codes + j, (x, x + dq), codes + k, part, KEYS), t)
                if nibbles:
                    y = x + 4 * part
                    t = add_eight(s, two_more((y, y + dq), codes + j, (y, y + dq), codes + k, part, KEYS), t)
                at += group_bytes
                x += 4 * GROUP
            put(out, 0, j, t[0], t[1])
            put(out, 1, j, t[2], t[3])
            put(out, 0, k, t[4], t[5])
            put(out, 1, k, t[6], t[7])

    @njit(forceinline=True)
    def scores_of_one(q: int, block: int, dim: int, begin: int, end: int, out: int) -> None:
        h = splat(shift(q, block, dim, number))
        for j in range(begin // (4 * lanes) * (4 * lanes), end, 4 * lanes):
            k = j + 2 * lanes
            t0, t1, t2, t3 = h, h, h, h
            at, x = block, q
            for _ in range(0, dim, GROUP):
                a, b = scales_of(at, j)
                c, d = scales_of(at, k)
                codes = at + _SCALES
                r = one((x,), codes + j, (x,), codes + k, part, KEYS)
                t0, t1, t2, t3 = fma(a, r[0], t0), fma(b, r[1], t1), fma(c, r[2], t2), fma(d, r[3], t3)
                if nibbles:
                    y = x + 4 * part
                    r = one_more((y,), codes + j, (y,), codes + k, part, KEYS)
                    t0, t1, t2, t3 = fma(a, r[0], t0), fma(b, r[1], t1), fma(c, r[2], t2), fma(d, r[3], t3)
                at += group_bytes
                x += 4 * GROUP
            put(out, 0, j, t0, t1)
            put(out, 0, k, t2, t3)

    @njit(forceinline=True)
    def scores(rows: int, q: int, dq: int, block: int, dim: int, begin: int, end: int, out: int) -> None:
        if rows == 4:
            scores_of_four(q, dq, block, dim, begin, end, out)
        elif rows == 2:
            scores_of_two(q, dq, block, dim, begin, end, out)
        else:
            scores_of_one(q, block, dim, begin, end, out)

    return scores


def build_values(ops: Ops, format: KvFormat) -> Any:
    """values(rows, weights, first, n, block, dim, out, stride, factors, space): up to four rows of weights (KEYS each)
    times positions first .. first + n - 1 of a block of values, added to rows of `out`, `stride` bytes apart, which are
    multiplied by `factors` first. space: (groups, 4, KEYS) f32."""
    lanes, load, store, fma = ops.lanes, ops.load_floats, ops.store_floats, ops.fma
    bytes_of, low_of, high_of = (
        ops.load_bytes_as_floats,
        ops.load_low_nibbles_as_floats,
        ops.load_high_nibbles_as_floats,
    )
    nibbles = format.bits == 4
    width = GROUP * format.bits // 8  # bytes of a group's codes
    other = GROUP // 2 if nibbles else lanes  # dimensions from the first vector of a column to the second
    columns = GROUP // (2 * lanes)  # of a group
    scaled = build_scaled(ops)

    @njit(forceinline=True)
    def load_two(b: int) -> Any:
        if nibbles:
            return low_of(int64(b)), high_of(int64(b))
        return bytes_of(int64(b)), bytes_of(int64(b + lanes))

    chains = build_chains(ops, load_two)
    four, two, one = chains.four, chains.two_twice, chains.one_twice

    @njit(forceinline=True)
    def gather(at: int, factor: Any, a: Any, b: Any) -> None:
        more = at + 4 * other
        store(int64(at), fma(load(int64(at)), factor, a))
        store(int64(more), fma(load(int64(more)), factor, b))

    @njit(forceinline=True)
    def place(column: int) -> Any:
        """Of a column: its group, its first dimension, its first byte in a position's codes."""
        group, within = column // columns, column % columns
        if nibbles:
            return group, group * GROUP + within * lanes, group * width + within * lanes
        return group, column * 2 * lanes, column * 2 * lanes

    @njit(forceinline=True)
    def values(
        rows: int, weights: int, first: int, n: int, block: int, dim: int, out: int, stride: int, f: Any, space: int
    ) -> None:
        groups, size = dim // GROUP, 4 * _ROW
        step = groups * width
        codes = block + groups * _SCALES + first * step
        for group in range(groups):
            scaled(rows, weights, block + group * _SCALES, space + group * size)
        w = space + 4 * first
        count, c = groups * columns, 0
        while c < count:
            group, i, byte = place(c)
            a, b, at = w + group * size, codes + byte, out + 4 * i
            if rows == 4:
                r = four((a, a + _ROW, a + 2 * _ROW, a + 3 * _ROW), n, b, step)
                gather(at, f[0], r[0], r[1])
                gather(at + stride, f[1], r[2], r[3])
                gather(at + 2 * stride, f[2], r[4], r[5])
                gather(at + 3 * stride, f[3], r[6], r[7])
                c += 1
            elif c + 1 < count:
                next_group, next_i, next_byte = place(c + 1)
                d, e, to = w + next_group * size, codes + next_byte, out + 4 * next_i
                if rows == 2:
                    r = two((a, a + _ROW), b, (d, d + _ROW), e, n, step)
                    gather(at, f[0], r[0], r[1])
                    gather(at + stride, f[1], r[2], r[3])
                    gather(to, f[0], r[4], r[5])
                    gather(to + stride, f[1], r[6], r[7])
                else:
                    s = one((a,), b, (d,), e, n, step)
                    gather(at, f[0], s[0], s[1])
                    gather(to, f[0], s[2], s[3])
                c += 2
            else:
                last = a + _ROW if rows == 2 else a
                s = one((a,), b, (last,), b, n, step)
                gather(at, f[0], s[0], s[1])
                if rows == 2:
                    gather(at + stride, f[1], s[2], s[3])
                c += 1

    return values
