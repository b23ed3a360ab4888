"""Several rows of a prompt at once, in attention: as many as registers hold sums for.

What all rows read (a block of keys, then of values) comes from the second cache where a head is wide, so that eight
rows wait for it half as often as four. A lane's sum is one chain from zero in the order of the steps, however many rows
are summed beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import float32, int64, njit

from edgerun.kernels.attention_chains import build_chains, build_load_two
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

    Sums are two vectors of each row, side by side: sums(rows, steps, b, step) as of `Chains`; begun(rows, block,
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
    chains = build_chains(ops, build_load_two(ops.load_floats, 4 * ops.lanes))
    four = _twice(_twice(_build_one(ops), ops, chains.two), ops, chains.four)
    return _twice(four, ops, chains.eight) if prompt_rows(ops.lanes) == 8 else four


def _build_one(ops: Ops) -> SeveralRows:
    """A single row; nobody sums one alone."""
    load, store, fma, splat, vector = ops.load_floats, ops.store_floats, ops.fma, ops.splat, 4 * ops.lanes
    shift = build_shift(ops, True)

    @njit(forceinline=True)
    def queries(a: int, r: int, end: int, group: int, token: int, head: int) -> Any:
        row = min(r, end - 1)
        return (a + row // group * token + row % group * head,)

    @njit(forceinline=True)
    def spread(a: int, apart: int) -> Any:
        return (a,)

    @njit(forceinline=True)
    def moved(a: Any, by: int) -> Any:
        return (a[0] + by,)

    @njit(forceinline=True)
    def first(a: int, block: int, dim: int, format: int) -> Any:
        if format != _NIBBLES:
            return splat(float32(0.0))
        return splat(shift(a, block, dim, format))

    @njit(forceinline=True)
    def begun(a: Any, block: int, dim: int, format: int) -> Any:
        x = first(a[0], block, dim, format)
        return x, x

    @njit(forceinline=True)
    def scaled(a: Any, b: Any, r: Any, t: Any) -> Any:
        return fma(a, r[0], t[0]), fma(b, r[1], t[1])

    @njit(forceinline=True)
    def stored(r: Any, to: int, apart: int) -> None:
        store(int64(to), r[0])
        store(int64(to + vector), r[1])

    @njit(forceinline=True)
    def joined(r: Any, to: int, apart: int, factors: int) -> None:
        if load_f32(int64(factors)) >= float32(0.0):
            factor = load(int64(factors))
            store(int64(to), fma(load(int64(to)), factor, r[0]))
            store(int64(to + vector), fma(load(int64(to + vector)), factor, r[1]))

    return SeveralRows(1, queries, spread, moved, None, begun, scaled, stored, joined)


def _twice(half: SeveralRows, ops: Ops, sums: Any) -> SeveralRows:
    """Twice as many rows, whose chains of many steps `sums` does."""
    rows, results, vector = half.together, 2 * half.together, 4 * ops.lanes
    half_queries, half_spread, half_moved, half_begun = half.queries, half.spread, half.moved, half.begun
    half_scaled, half_stored, half_joined = half.scaled, half.stored, half.joined

    @njit(forceinline=True)
    def queries(a: int, r: int, end: int, group: int, token: int, head: int) -> Any:
        return half_queries(a, r, end, group, token, head) + half_queries(a, r + rows, end, group, token, head)

    @njit(forceinline=True)
    def spread(a: int, apart: int) -> Any:
        return half_spread(a, apart) + half_spread(a + rows * apart, apart)

    @njit(forceinline=True)
    def moved(a: Any, by: int) -> Any:
        return half_moved(a[:rows], by) + half_moved(a[rows:], by)

    @njit(forceinline=True)
    def begun(a: Any, block: int, dim: int, format: int) -> Any:
        return half_begun(a[:rows], block, dim, format) + half_begun(a[rows:], block, dim, format)

    @njit(forceinline=True)
    def scaled(a: Any, b: Any, r: Any, t: Any) -> Any:
        return half_scaled(a, b, r[:results], t[:results]) + half_scaled(a, b, r[results:], t[results:])

    @njit(forceinline=True)
    def stored(r: Any, to: int, apart: int) -> None:
        half_stored(r[:results], to, apart)
        half_stored(r[results:], to + rows * apart, apart)

    @njit(forceinline=True)
    def joined(r: Any, to: int, apart: int, factors: int) -> None:
        half_joined(r[:results], to, apart, factors)
        half_joined(r[results:], to + rows * apart, apart, factors + rows * vector)

    return SeveralRows(results, queries, spread, moved, sums, begun, scaled, stored, joined)
