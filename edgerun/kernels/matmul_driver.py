"""The loops around every product: items, tokens by eights, fours and ones, the store; a format brings only its block.

One launch can do several products (q, k, v; gate and up; the experts of a layer): `arguments` is a slot with their
number, one with the address of flags that say which thread's scratch memory is in use, two with its address and size
for each thread, and from byte 128 on one descriptor of sixteen int64 slots for each product:

    0 first item   1 weights   2 out           3 tokens   4 blocks in a row   5 rows   6 out row bytes   7 add
    8 quants       9 quants row bytes         10 scales  11 scales row bytes 12 sums  13 sums row bytes

An item is a group of `lanes` weight rows. Eight tokens go through `spread_kernels` where enough groups are at hand;
four share one unpacking of a block; the rest go one by one through the same arithmetic in the same order, so a row's
result never depends on its neighbours.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64, prefetch
from edgerun.kernels.spread_kernels import Wide, build_eights

DESCRIPTOR_BYTES = 128
AHEAD_BYTES = 1536  # of weights that are asked for before they are needed


def kernel_signature() -> Any:
    """(arguments address, low, high) -> None."""
    return signature(types.void, types.int64, types.int64, types.int64)


def build_matmul(
    ops: Ops,
    block_bytes: int,
    quants_bytes: int,
    scale_bytes: int,
    sums_bytes: int,
    one: Any,
    four: Any,
    wide: Wide | None = None,
) -> Any:
    """A kernel from `one(acc, q, x, s, c) -> acc`, which adds a block of one token, `four`, the same for a tuple
    of four tokens with (x, x stride), (s, s stride), (c, c stride), and what does it for eight.

    The byte counts are what a block takes of each operand: weights (of a whole group), quants, scales, sums.
    """
    lanes = ops.lanes
    zero, add_floats = ops.zero_floats, ops.add
    load_out, store_out = ops.load_floats_masked, ops.store_floats_masked

    @njit(forceinline=True)
    def put(y: int, acc: Any, valid: int, add: int) -> None:
        if add != 0:
            acc = add_floats(acc, load_out(int64(y), int64(valid)))
        store_out(int64(y), acc, int64(valid))

    @njit(forceinline=True)
    def rest(d: int, item: int, done: int) -> None:
        """A group's products with the tokens from `done` on."""
        group = item - load_i64(d)
        blocks = load_i64(int64(d + 32))
        base = load_i64(int64(d + 8)) + group * blocks * block_bytes
        tokens = load_i64(int64(d + 24))
        valid = min(load_i64(int64(d + 40)) - group * lanes, lanes)
        stride = load_i64(int64(d + 48))
        add = load_i64(int64(d + 56))
        x_stride = load_i64(int64(d + 72))
        s_stride = load_i64(int64(d + 88))
        c_stride = load_i64(int64(d + 104))
        y = load_i64(int64(d + 16)) + group * lanes * 4 + done * stride
        x = load_i64(int64(d + 64)) + done * x_stride
        s = load_i64(int64(d + 80)) + done * s_stride
        c = load_i64(int64(d + 96)) + done * c_stride
        token = done
        while token + 4 <= tokens:
            acc = (zero(), zero(), zero(), zero())
            q, xb, sb, cb = base, x, s, c
            for _ in range(blocks):
                acc = four(acc, q, xb, x_stride, sb, s_stride, cb, c_stride)
                q += block_bytes
                xb += quants_bytes
                sb += scale_bytes
                cb += sums_bytes
            put(y, acc[0], valid, add)
            put(y + stride, acc[1], valid, add)
            put(y + 2 * stride, acc[2], valid, add)
            put(y + 3 * stride, acc[3], valid, add)
            y += 4 * stride
            x += 4 * x_stride
            s += 4 * s_stride
            c += 4 * c_stride
            token += 4
        while token < tokens:
            single = zero()
            q, xb, sb, cb = base, x, s, c
            for _ in range(blocks):
                for line in range(0, block_bytes, 64):
                    prefetch(int64(q + AHEAD_BYTES + line))
                single = one(single, q, xb, sb, cb)
                q += block_bytes
                xb += quants_bytes
                sb += scale_bytes
                cb += sums_bytes
            put(y, single, valid, add)
            y += stride
            x += x_stride
            s += s_stride
            c += c_stride
            token += 1

    if wide is None:

        @njit(forceinline=True)
        def eights(arguments: int, d: int, first: int, last: int) -> int:
            return 0
    else:
        eights = build_eights(ops, wide, block_bytes, quants_bytes, scale_bytes, sums_bytes, put)

    def matmul(arguments: int, low: int, high: int) -> None:
        count = load_i64(int64(arguments))
        d = arguments + 128
        index = 0
        item = low
        while item < high:
            while index + 1 < count and load_i64(int64(d + 128)) <= item:
                d += 128
                index += 1
            end = high
            if index + 1 < count:
                end = min(high, load_i64(int64(d + 128)))
            done = eights(arguments, d, item, end)
            while item < end:
                rest(d, item, done)
                item += 1

    return matmul, kernel_signature()
