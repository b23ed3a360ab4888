"""Several rows of a prompt at once, in attention: as many as registers hold sums for.

What all rows read (a block of keys, then of values) comes from the second cache where a head is wide, so that eight
rows wait for it half as often as four. A lane's sum is one chain from zero in the order of the steps, however many rows
are summed beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import float32, int64, njit

from edgerun.kernels.attention_blocks import build_four
from edgerun.kernels.attention_layout import prompt_rows
from edgerun.kernels.attention_quantised import build_shift
from edgerun.kernels.kv_formats import Q4_0
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32

_NIBBLES = Q4_0.number


class SeveralRows(NamedTuple):
    """`together` rows. queries(a, r, end, group, token, head): addresses of rows r .. of heads, `group` to a token,
    where tokens and heads lie so far apart; row end - 1 stands for those from `end` on. spread(a, apart): addresses,
    `apart` bytes from one to the next; moved(rows, by): the same, `by` bytes on.

    Sums are two vectors of each row, side by side: sums(rows, steps, b, step) as of `build_four`; begun(rows, block,
    dim, format): the queries times the mean that a block of keys goes without; scaled(a, b, sums, more): sums times the
    vectors a and b, added to `more`; stored(sums, to, apart): to where each row's lie; joined(sums, to, apart,
    factors): added there to what is there times the row's factor, of which there is a vector for each row at `factors`;
    a row whose factor is below 0 stays as it is."""

    together: int
    queries: Any
    spread: Any
    moved: Any
    sums: Any
    begun: Any
    scaled: Any
    stored: Any
    joined: Any


def build_several(ops: Ops) -> SeveralRows:
    """Eight rows where there are registers for them, or four."""
    return _build_eight(ops) if prompt_rows(ops.lanes) == 8 else _build_four(ops)


def _build_four(ops: Ops) -> SeveralRows:
    fma, splat, stored_two, joined_two = ops.fma, ops.splat, *_build_two(ops)
    four, shift = build_four(ops, _two_loads(ops)), build_shift(ops, True)

    @njit(forceinline=True)
    def query(a: int, r: int, end: int, group: int, token: int, head: int) -> int:
        row = min(r, end - 1)
        return a + row // group * token + row % group * head

    @njit(forceinline=True)
    def queries(a: int, r: int, end: int, group: int, token: int, head: int) -> Any:
        first, second = query(a, r, end, group, token, head), query(a, r + 1, end, group, token, head)
        return first, second, query(a, r + 2, end, group, token, head), query(a, r + 3, end, group, token, head)

    @njit(forceinline=True)
    def spread(a: int, apart: int) -> Any:
        return a, a + apart, a + 2 * apart, a + 3 * apart

    @njit(forceinline=True)
    def moved(a: Any, by: int) -> Any:
        return a[0] + by, a[1] + by, a[2] + by, a[3] + by

    @njit(forceinline=True)
    def sums(a: Any, steps: int, b: int, step: int) -> Any:
        return four(a[0], a[1], a[2], a[3], steps, b, step)

    @njit(forceinline=True)
    def first(a: int, block: int, dim: int, format: int) -> Any:
        if format != _NIBBLES:
            return splat(float32(0.0))
        return splat(shift(a, block, dim, format))

    @njit(forceinline=True)
    def begun(a: Any, block: int, dim: int, format: int) -> Any:
        x0, x1 = first(a[0], block, dim, format), first(a[1], block, dim, format)
        x2, x3 = first(a[2], block, dim, format), first(a[3], block, dim, format)
        return x0, x0, x1, x1, x2, x2, x3, x3

    @njit(forceinline=True)
    def scaled(a: Any, b: Any, r: Any, t: Any) -> Any:
        t0, t1, t2, t3 = fma(a, r[0], t[0]), fma(b, r[1], t[1]), fma(a, r[2], t[2]), fma(b, r[3], t[3])
        t4, t5, t6, t7 = fma(a, r[4], t[4]), fma(b, r[5], t[5]), fma(a, r[6], t[6]), fma(b, r[7], t[7])
        return t0, t1, t2, t3, t4, t5, t6, t7

    @njit(forceinline=True)
    def stored(r: Any, to: int, apart: int) -> None:
        stored_two(to, r[0], r[1])
        stored_two(to + apart, r[2], r[3])
        stored_two(to + 2 * apart, r[4], r[5])
        stored_two(to + 3 * apart, r[6], r[7])

    @njit(forceinline=True)
    def joined(r: Any, to: int, apart: int, factors: int) -> None:
        joined_two(factors, 0, to, r[0], r[1])
        joined_two(factors, 1, to + apart, r[2], r[3])
        joined_two(factors, 2, to + 2 * apart, r[4], r[5])
        joined_two(factors, 3, to + 3 * apart, r[6], r[7])

    return SeveralRows(4, queries, spread, moved, sums, begun, scaled, stored, joined)


def _build_eight(ops: Ops) -> SeveralRows:
    """Twice the rows of `_build_four`, whose functions do what is not a chain of many steps."""
    half, zero, fma, splat_load, load_two = _build_four(ops), ops.zero_floats, ops.fma, ops.splat_load, _two_loads(ops)
    half_queries, half_begun, half_scaled = half.queries, half.begun, half.scaled
    half_stored, half_joined, vector = half.stored, half.joined, 4 * ops.lanes

    @njit(forceinline=True)
    def queries(a: int, r: int, end: int, group: int, token: int, head: int) -> Any:
        return half_queries(a, r, end, group, token, head) + half_queries(a, r + 4, end, group, token, head)

    @njit(forceinline=True)
    def spread(a: int, d: int) -> Any:
        return a, a + d, a + 2 * d, a + 3 * d, a + 4 * d, a + 5 * d, a + 6 * d, a + 7 * d

    @njit(forceinline=True)
    def moved(a: Any, d: int) -> Any:
        return a[0] + d, a[1] + d, a[2] + d, a[3] + d, a[4] + d, a[5] + d, a[6] + d, a[7] + d

    @njit(forceinline=True)
    def sums(a: Any, steps: int, b: int, step: int) -> Any:
        a0, a1, a2, a3, a4, a5, a6, a7 = a
        r0, r1, r2, r3, r4, r5, r6, r7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        s0, s1, s2, s3, s4, s5, s6, s7 = zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()
        for at in range(0, 4 * steps, 4):
            x, y = load_two(b)
            w = splat_load(int64(a0 + at))
            r0, s0 = fma(w, x, r0), fma(w, y, s0)
            w = splat_load(int64(a1 + at))
            r1, s1 = fma(w, x, r1), fma(w, y, s1)
            w = splat_load(int64(a2 + at))
            r2, s2 = fma(w, x, r2), fma(w, y, s2)
            w = splat_load(int64(a3 + at))
            r3, s3 = fma(w, x, r3), fma(w, y, s3)
            w = splat_load(int64(a4 + at))
            r4, s4 = fma(w, x, r4), fma(w, y, s4)
            w = splat_load(int64(a5 + at))
            r5, s5 = fma(w, x, r5), fma(w, y, s5)
            w = splat_load(int64(a6 + at))
            r6, s6 = fma(w, x, r6), fma(w, y, s6)
            w = splat_load(int64(a7 + at))
            r7, s7 = fma(w, x, r7), fma(w, y, s7)
            b += step
        return r0, s0, r1, s1, r2, s2, r3, s3, r4, s4, r5, s5, r6, s6, r7, s7

    @njit(forceinline=True)
    def begun(a: Any, block: int, dim: int, format: int) -> Any:
        return half_begun(a[:4], block, dim, format) + half_begun(a[4:], block, dim, format)

    @njit(forceinline=True)
    def scaled(a: Any, b: Any, r: Any, t: Any) -> Any:
        return half_scaled(a, b, r[:8], t[:8]) + half_scaled(a, b, r[8:], t[8:])

    @njit(forceinline=True)
    def stored(r: Any, to: int, apart: int) -> None:
        half_stored(r[:8], to, apart)
        half_stored(r[8:], to + 4 * apart, apart)

    @njit(forceinline=True)
    def joined(r: Any, to: int, apart: int, factors: int) -> None:
        half_joined(r[:8], to, apart, factors)
        half_joined(r[8:], to + 4 * apart, apart, factors + 4 * vector)

    return SeveralRows(8, queries, spread, moved, sums, begun, scaled, stored, joined)


def _two_loads(ops: Ops) -> Any:
    """The two vectors at an address."""
    load, vector = ops.load_floats, 4 * ops.lanes

    @njit(forceinline=True)
    def load_two(b: int) -> Any:
        return load(int64(b)), load(int64(b + vector))

    return load_two


def _build_two(ops: Ops) -> tuple[Any, Any]:
    """`stored` and `joined` of one row."""
    load, store, fma, vector = ops.load_floats, ops.store_floats, ops.fma, 4 * ops.lanes

    @njit(forceinline=True)
    def stored(to: int, a: Any, b: Any) -> None:
        store(int64(to), a)
        store(int64(to + vector), b)

    @njit(forceinline=True)
    def joined(factors: int, row: int, to: int, a: Any, b: Any) -> None:
        at = factors + row * vector
        if load_f32(int64(at)) >= float32(0.0):
            factor = load(int64(at))
            store(int64(to), fma(load(int64(to)), factor, a))
            store(int64(to + vector), fma(load(int64(to + vector)), factor, b))

    return stored, joined
