"""What attention of single rows ends with: the pages of a row, in ascending order, become one result."""

from __future__ import annotations

from typing import Any

from numba import float32, int64

from edgerun.kernels.abi import LIST_AT
from edgerun.kernels.attention_blocks import LOWEST, build_join, build_share
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, load_i64

_MERGED_BYTES = 32  # of an `attention_abi.MergedRow`


def build_attention_merge(ops: Ops) -> Any:
    """See `attention_abi.AttentionMerge`."""
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    zero, splat, join, share = ops.zero_floats, ops.splat, build_join(ops), build_share(ops)

    def attention_merge(arguments: int, low: int, high: int) -> None:
        heads, dim = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        sinks = load_i64(int64(arguments + 16))
        size = (dim + 2) * 4
        for item in range(low, high):
            row, head = arguments + LIST_AT + item // heads * _MERGED_BYTES, item % heads
            parts, pages = load_i64(int64(row)), load_i64(int64(row + 8))
            target = load_i64(int64(row + 16)) + head * dim * 4
            for i in range(0, dim, lanes):
                store(int64(target + 4 * i), zero(), int64(dim - i))
            top, total = float32(LOWEST), float32(0.0)
            for c in range(pages):
                part = parts + (head * pages + c) * size
                at = part + 4 * dim
                top, total, old, new = join(top, total, load_f32(int64(at)), load_f32(int64(at + 4)))
                for i in range(0, dim, lanes):
                    n = int64(dim - i)
                    added = times(load(int64(part + 4 * i), n), new)
                    store(int64(target + 4 * i), fma(load(int64(target + 4 * i), n), old, added), n)
            sink = 0
            if sinks != 0:
                sink = sinks + 4 * head
            inverse = splat(share(top, total, sink))
            for i in range(0, dim, lanes):
                n = int64(dim - i)
                store(int64(target + 4 * i), times(load(int64(target + 4 * i), n), inverse), n)

    return attention_merge, kernel_signature()
