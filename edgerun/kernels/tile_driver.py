"""Products of a prompt: a slab of a pair of groups is unpacked once, then every tile of tokens passes over it.

Unpacked weights are what a format's tile wants to multiply at once: bytes without nibbles, scales widened. They live
for a slab of columns, a tile's sums of all slabs in memory between its blocks: fewer registers are needed, and the
arithmetic of a row stays that of one token, in its order.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.matmul_driver import AHEAD_BYTES, BlockBytes, build_matmul, putter
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64, prefetch
from edgerun.kernels.tile_layout import GROUPS, SLAB_BYTES, TILES, TOKENS


def build_tiled_matmul(ops: Ops, sizes: BlockBytes, unpacked: int, one: Any, unpack: Any, tile: Any) -> Any:
    """A kernel from `one` (see `build_matmul`), `unpack(q, w)`, which writes a group's block in `unpacked` bytes, and
    `tile(w, sums, x0, x1, x2, s0, s1, s2, c0, c1, c2)`, which adds a block of GROUPS groups for TOKENS tokens.
    """
    lanes, zero, load, store, put = ops.lanes, ops.zero_floats, ops.load_floats, ops.store_floats, putter(ops)
    block_bytes, quants_bytes, scale_bytes, sums_bytes = sizes.weights, sizes.many_quants, sizes.scales, sizes.sums
    vector = 4 * lanes
    sums_of_tile = TOKENS * GROUPS * vector
    both = GROUPS * unpacked
    slab = max(1, SLAB_BYTES * lanes // 8 // both)  # in blocks

    @njit(forceinline=True)
    def unpack_slab(first: int, second: int, blocks: int, w: int) -> None:
        for _ in range(blocks):
            for line in range(0, block_bytes, 64):
                prefetch(int64(first + AHEAD_BYTES + line))
                prefetch(int64(second + AHEAD_BYTES + line))
            unpack(first, w)
            unpack(second, w + unpacked)
            first += block_bytes
            second += block_bytes
            w += both

    @njit(forceinline=True)
    def pass_slab(d: int, block: int, blocks: int, w: int, sums: int) -> None:
        tokens = load_i64(int64(d + 24))
        dx, ds, dc = load_i64(int64(d + 72)), load_i64(int64(d + 88)), load_i64(int64(d + 104))
        x0 = load_i64(int64(d + 64)) + block * quants_bytes
        s0 = load_i64(int64(d + 80)) + block * scale_bytes
        c0 = load_i64(int64(d + 96)) + block * sums_bytes
        for t in range(0, tokens, TOKENS):
            # a tile beyond the last token repeats it, and the result is not kept
            second, third = min(t + 1, tokens - 1), min(t + 2, tokens - 1)
            xa, xb, xc = x0 + t * dx, x0 + second * dx, x0 + third * dx
            sa, sb, sc = s0 + t * ds, s0 + second * ds, s0 + third * ds
            ca, cb, cc = c0 + t * dc, c0 + second * dc, c0 + third * dc
            weights, following = w, TOKENS * dx
            for _ in range(blocks):
                prefetch(int64(xa + following))  # rows lie too far apart for the hardware to see it coming
                prefetch(int64(xb + following))
                prefetch(int64(xc + following))
                tile((weights, sums, xa, xb, xc, sa, sb, sc, ca, cb, cc))
                weights += both
                xa += quants_bytes
                xb += quants_bytes
                xc += quants_bytes
                sa += scale_bytes
                sb += scale_bytes
                sc += scale_bytes
                ca += sums_bytes
                cb += sums_bytes
                cc += sums_bytes
            sums += sums_of_tile

    @njit(forceinline=True)
    def put_group(d: int, group: int, sums: int) -> None:
        tokens, rows = load_i64(int64(d + 24)), load_i64(int64(d + 40))
        stride, add = load_i64(int64(d + 48)), load_i64(int64(d + 56))
        y = load_i64(int64(d + 16)) + group * lanes * 4
        valid = min(rows - group * lanes, lanes)
        for _ in range(tokens):
            put(y, load(int64(sums)), valid, add)
            y += stride
            sums += GROUPS * vector

    @njit(forceinline=True)
    def prompt(d: int, pair: int, scratch: int) -> None:
        blocks, rows = load_i64(int64(d + 32)), load_i64(int64(d + 40))
        group = pair * GROUPS
        other = group + 1 if (group + 1) * lanes < rows else group  # a single last group is its own partner
        first = load_i64(int64(d + 8)) + group * blocks * block_bytes
        second = load_i64(int64(d + 8)) + other * blocks * block_bytes
        w = scratch + TILES * sums_of_tile
        for at in range(0, TILES * sums_of_tile, vector):
            store(int64(scratch + at), zero())
        for block in range(0, blocks, slab):
            count = min(slab, blocks - block)
            unpack_slab(first + block * block_bytes, second + block * block_bytes, count, w)
            pass_slab(d, block, count, w, scratch)
        put_group(d, group, scratch)
        if other != group:
            put_group(d, other, scratch + vector)

    return build_matmul(ops, sizes, one, prompt)
