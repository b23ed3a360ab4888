"""Products for eight tokens at a time, with activations that were spread out beforehand.

A register holds a word of four weights of every row, so a word of activations must stand in all of its lanes. Spreading
it (`vpbroadcastd`) takes as long as multiplying. Here that is done once for a *slab*, 32 columns of eight tokens (2 KB:
a core's first-level cache is shared with whoever else runs on it), which serves up to 32 groups of rows (16 of sixteen
lanes) before the next; the multiplication takes its operand from there. (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008, pack panels so.) The sums of all tokens wait in scratch memory meanwhile.
Whatever the path, a row's additions are the same in the same order.

A slab is word after word, of each the vectors of eight tokens: 32 columns of quants and, beside them, the block's scale
and what `Wide` says of its sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import int64, njit

from edgerun.kernels.layout import TOKENS_AT_ONCE, WIDE_LEAST, WIDE_TOKENS, wide_groups
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import exchange, load_i64, prefetch, store_release

LEAST_GROUPS = 12  # fewer share a slab too little
STEP = 32  # columns of a slab
_STEP_WORDS = STEP // 4
_PIECE = 256  # columns whose weights stay in the second-level cache while all tokens go by


@dataclass(frozen=True)
class Wide:
    """A format's block for eight tokens. tile(into, q, x, step, aside): the weights of 32 columns (the step-th of the
    block at q) times the slab at x, added to eight vectors: the f32 sums of a format whose blocks have 32 columns, else
    i32 products, which finish(sums, products, q, s) adds to the sums at the end of a block, s being where the slab has
    the scale. `first_sum`, `sum_words`: which 32-bit words of the block's sums are spread. aside(q) -> i32 vector: of a
    block of weights alone, kept for all tokens; None: nothing."""

    tile: Any
    finish: Any = None
    first_sum: int = 0
    sum_words: int = 0
    aside: Any = None


def on_eight(vec: int, one: Any) -> Any:
    """one(total, a, b, x) for eight tokens whose words lie side by side from x on: (totals, a, b, x) -> totals."""

    @njit(forceinline=True)
    def eight(t: Any, a: Any, b: Any, x: int) -> Any:
        return (
            one(t[0], a, b, x),
            one(t[1], a, b, x + vec),
            one(t[2], a, b, x + 2 * vec),
            one(t[3], a, b, x + 3 * vec),
            one(t[4], a, b, x + 4 * vec),
            one(t[5], a, b, x + 5 * vec),
            one(t[6], a, b, x + 6 * vec),
            one(t[7], a, b, x + 7 * vec),
        )

    return eight


def add_eight(vec: int, load: Any, store: Any, one: Any) -> Any:
    """one(sum, total, a, s) -> sum for eight tokens: (address of sums, totals, a, address of what goes with them)."""

    @njit(forceinline=True)
    def add(sums: int, total: Any, a: Any, s: int) -> None:
        store(int64(sums), one(load(int64(sums)), total, a, s))

    @njit(forceinline=True)
    def eight(sums: int, t: Any, a: Any, s: int) -> None:
        add(sums, t[0], a, s)
        add(sums + vec, t[1], a, s + vec)
        add(sums + 2 * vec, t[2], a, s + 2 * vec)
        add(sums + 3 * vec, t[3], a, s + 3 * vec)
        add(sums + 4 * vec, t[4], a, s + 4 * vec)
        add(sums + 5 * vec, t[5], a, s + 5 * vec)
        add(sums + 6 * vec, t[6], a, s + 6 * vec)
        add(sums + 7 * vec, t[7], a, s + 7 * vec)

    return eight


def build_eights(
    ops: Ops, wide: Wide, block_bytes: int, quants_bytes: int, scale_bytes: int, sums_bytes: int, put: Any
) -> Any:
    """eights(arguments, d, first, last) -> tokens: does those of the descriptor at d for the items first .. last - 1,
    and says how many they were: all but a last few that make no eight. None, where few groups share a slab, or for a
    single eight: there memory binds, and rows are read faster one after the other.
    put(address, sums, valid rows, add) stores a vector of results."""
    vec, lanes = 4 * ops.lanes, ops.lanes
    tile, splat4, store_bytes = wide.tile, ops.splat4, ops.store_bytes
    zero, load_floats, store_floats, store_ints = ops.zero_floats, ops.load_floats, ops.store_floats, ops.store_ints
    first_sum, sum_words, steps = wide.first_sum, wide.sum_words, quants_bytes // STEP
    eight = WIDE_TOKENS * vec
    most_groups, together = wide_groups(lanes), _PIECE // quants_bytes  # blocks
    aside, has_aside = wide.aside, wide.aside is not None
    finish, finishes = wide.finish, wide.finish is not None

    @njit(forceinline=True)
    def spread(to: int, x: int, dx: int, words: int, tokens: int) -> None:
        for token in range(WIDE_TOKENS):
            row = x + min(token, tokens - 1) * dx  # what is missing of eight is computed, and not stored
            for i in range(words):
                store_bytes(int64(to + i * eight + token * vec), splat4(int64(row + 4 * i)))

    @njit
    def eights(arguments: int, d: int, first: int, last: int) -> Any:
        tokens = min(load_i64(int64(d + 24)), TOKENS_AT_ONCE)
        if tokens % WIDE_TOKENS < WIDE_LEAST:
            tokens -= tokens % WIDE_TOKENS
        if tokens <= WIDE_TOKENS or last - first < LEAST_GROUPS:
            return 0
        busy, slot = load_i64(int64(arguments + 8)), 0
        while exchange(int64(busy + 8 * slot), int64(1)) != 0:
            slot += 1  # one slot a thread: there is always a free one
        blocks, stride, add = load_i64(int64(d + 32)), load_i64(int64(d + 48)), load_i64(int64(d + 56))
        row_bytes = blocks * block_bytes
        x, dx = load_i64(int64(d + 64)), load_i64(int64(d + 72))
        s, ds = load_i64(int64(d + 80)), load_i64(int64(d + 88))
        c, dc = load_i64(int64(d + 96)), load_i64(int64(d + 104))
        slab = load_i64(int64(arguments + 16)) + slot * load_i64(int64(arguments + 24))
        rest = slab + _STEP_WORDS * eight
        products = rest + (1 + sum_words) * eight
        asides = products + most_groups * eight
        sums = asides + most_groups * together * vec
        turns = -(-tokens // WIDE_TOKENS) * together * steps
        lines_at_once = -(-together * block_bytes // (64 * turns))
        for low in range(first - load_i64(d), last - load_i64(d), most_groups):
            groups = min(most_groups, last - load_i64(d) - low)
            base = load_i64(int64(d + 8)) + low * row_bytes
            for i in range(groups * WIDE_TOKENS):
                store_floats(int64(products + i * vec), zero())
            for i in range(groups * (-(-tokens // WIDE_TOKENS) * WIDE_TOKENS)):
                store_floats(int64(sums + i * vec), zero())
            for k in range(0, blocks, together):
                some = min(together, blocks - k)
                if has_aside:
                    for group in range(groups):
                        for block in range(some):
                            at = asides + (group * together + block) * vec
                            store_ints(int64(at), aside(int64(base + group * row_bytes + (k + block) * block_bytes)))
                line = together * block_bytes  # of the next weights: asked for bit by bit, nothing else foresees them
                for token in range(0, tokens, WIDE_TOKENS):
                    result = sums + token * groups * vec
                    for block in range(some):
                        q, left = base + (k + block) * block_bytes, tokens - token
                        scale, beyond = s + token * ds + (k + block) * scale_bytes, c + token * dc + 4 * first_sum
                        quants = x + token * dx + (k + block) * quants_bytes
                        spread(rest, scale, ds, 1, left)
                        spread(rest + eight, beyond + (k + block) * sums_bytes, dc, sum_words, left)
                        for step in range(steps):
                            spread(slab, quants + step * STEP, dx, _STEP_WORDS, left)
                            into = products if finishes else result
                            for group in range(groups):
                                at = q + group * row_bytes
                                for i in range(lines_at_once):
                                    prefetch(int64(at + line + 64 * i - block * block_bytes))
                                beside = asides + (group * together + block) * vec
                                tile(int64(into + group * eight), int64(at), int64(slab), int64(step), int64(beside))
                            line += 64 * lines_at_once
                        if finishes:
                            for group in range(groups):
                                at, into = q + group * row_bytes, products + group * eight
                                finish(int64(result + group * eight), int64(into), int64(at), int64(rest))
            rows, out = load_i64(int64(d + 40)), load_i64(int64(d + 16))
            for token in range(tokens):
                for group in range(groups):
                    at = (token // WIDE_TOKENS * groups + group) * WIDE_TOKENS + token % WIDE_TOKENS
                    valid = min(rows - (low + group) * lanes, lanes)
                    put(out + token * stride + (low + group) * vec, load_floats(int64(sums + at * vec)), valid, add)
        store_release(int64(busy + 8 * slot), int64(0))
        return tokens

    return eights
