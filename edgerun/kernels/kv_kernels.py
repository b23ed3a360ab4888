"""New keys and values into pages."""

from __future__ import annotations

from typing import Any

from numba import int64

from edgerun.kernels.abi import LIST_AT
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, load_i64, store_f16

_SPAN_BYTES = 32  # of an `abi.WrittenSpan`


def build_kv_write(ops: Ops) -> Any:
    """See `abi.KvWrite`. f32 -> f16, keys turned (`attention_layout`)."""
    lanes, load, store_halves = ops.lanes, ops.load_floats, ops.store_halves

    def kv_write(arguments: int, low: int, high: int) -> None:
        keys_at, values_at = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        keys_stride, values_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        k, v = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        heads = load_i64(int64(arguments + 48))
        dim, dim_v = load_i64(int64(arguments + 56)), load_i64(int64(arguments + 64))
        for item in range(low, high):
            span, head = arguments + LIST_AT + item // heads * _SPAN_BYTES, item % heads
            table, start = load_i64(int64(span)), load_i64(int64(span + 8))
            row, rows = load_i64(int64(span + 16)), load_i64(int64(span + 24))
            for token in range(rows):
                page = load_i64(int64(table + (start + token) // KEYS_PER_PAGE * 8))
                position = (start + token) % KEYS_PER_PAGE
                source = k + ((row + token) * heads + head) * dim * 4
                block = page + keys_at + head * keys_stride + position // KEYS * dim * KEYS * 2
                target = block + position % KEYS * 2
                for i in range(dim):
                    store_f16(int64(target + i * KEYS * 2), load_f32(int64(source + 4 * i)))
                source = v + ((row + token) * heads + head) * dim_v * 4
                target = page + values_at + head * values_stride + position * dim_v * 2
                i = 0
                while i + lanes <= dim_v:
                    store_halves(int64(target + 2 * i), load(int64(source + 4 * i)))
                    i += lanes
                while i < dim_v:
                    store_f16(int64(target + 2 * i), load_f32(int64(source + 4 * i)))
                    i += 1

    return kv_write, kernel_signature()
