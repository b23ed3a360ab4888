"""The loops around every product: which matrix an item belongs to, then one token or a prompt.

One launch can do several products (q, k, v; gate and up; the experts of a layer): `arguments` is slots

    0 number of products   1 scratch   2 bytes of scratch for a thread   3 &busy flags of the scratches

and from byte 128 on one descriptor of sixteen int64 slots for each product:

    0 first item   1 weights   2 out           3 tokens   4 blocks in a row   5 rows   6 out row bytes   7 add
    8 quants       9 quants row bytes         10 scales  11 scales row bytes 12 sums  13 sums row bytes

An item is a group of `lanes` weight rows for one token, a pair of groups for more (`tile_driver`). Both do the same
float arithmetic in the same order, so a row's result never depends on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import exchange, load_i64, prefetch, store_release

AHEAD_BYTES = 1536  # of weights that are asked for before they are needed


@dataclass(frozen=True)
class BlockBytes:
    """What a block takes of each operand: weights (of a whole group), quants of one and of several tokens, scales,
    sums."""

    weights: int
    quants: int
    many_quants: int
    scales: int
    sums: int


def kernel_signature() -> Any:
    """(arguments address, low, high) -> None."""
    return signature(types.void, types.int64, types.int64, types.int64)


def putter(ops: Ops) -> Any:
    """put(y, acc, valid, add): the first `valid` lanes of a result to memory, or added to what is there."""
    add_floats, load_out, store_out = ops.add, ops.load_floats_masked, ops.store_floats_masked

    @njit(forceinline=True)
    def put(y: int, acc: Any, valid: int, add: int) -> None:
        if add != 0:
            acc = add_floats(acc, load_out(int64(y), int64(valid)))
        store_out(int64(y), acc, int64(valid))

    return put


def build_matmul(ops: Ops, sizes: BlockBytes, one: Any, prompt: Any) -> Any:
    """A kernel from `one(acc, q, x, s, c) -> acc`, which adds a block of one token, and `prompt(descriptor, pair,
    scratch)`, which does a pair of groups for several tokens."""
    lanes, zero, put = ops.lanes, ops.zero_floats, putter(ops)
    block_bytes, quants_bytes, scale_bytes, sums_bytes = sizes.weights, sizes.quants, sizes.scales, sizes.sums

    @njit(forceinline=True)
    def single(d: int, group: int) -> None:
        blocks = load_i64(int64(d + 32))
        q = load_i64(int64(d + 8)) + group * blocks * block_bytes
        x, s, c = load_i64(int64(d + 64)), load_i64(int64(d + 80)), load_i64(int64(d + 96))
        acc = zero()
        for _ in range(blocks):
            for line in range(0, block_bytes, 64):
                prefetch(int64(q + AHEAD_BYTES + line))
            acc = one(acc, q, x, s, c)
            q += block_bytes
            x += quants_bytes
            s += scale_bytes
            c += sums_bytes
        y = load_i64(int64(d + 16)) + group * lanes * 4
        put(y, acc, min(load_i64(int64(d + 40)) - group * lanes, lanes), load_i64(int64(d + 56)))

    def matmul(arguments: int, low: int, high: int) -> None:
        count = load_i64(int64(arguments))
        busy, slot = load_i64(int64(arguments + 24)), int64(-1)
        d: Any = int64(arguments + 128)
        index = 0
        for item in range(low, high):
            while index + 1 < count and load_i64(int64(d + 128)) <= item:
                d += 128
                index += 1
            piece = item - load_i64(d)
            if load_i64(int64(d + 24)) == 1:
                single(d, piece)
                continue
            if slot < 0:
                slot = int64(0)
                while exchange(int64(busy + 8 * slot), int64(1)) != 0:
                    slot += 1  # one slot a thread: there is always a free one
            prompt(d, piece, load_i64(int64(arguments + 8)) + slot * load_i64(int64(arguments + 16)))
        if slot >= 0:
            store_release(int64(busy + 8 * slot), int64(0))

    return matmul, kernel_signature()
