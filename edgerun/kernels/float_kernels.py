"""F32, F16 and BF16 products over f32 activations: one block is one column of a group of rows."""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.matmul_driver import BlockBytes, build_matmul, putter
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_i64


def _build(ops: Ops, load: Any, weight_bytes: int) -> Any:
    lanes, splat_load, fma, zero, put = ops.lanes, ops.splat_load, ops.fma, ops.zero_floats, putter(ops)

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        return fma(load(int64(q)), splat_load(int64(x)), acc)

    block_bytes = weight_bytes * ops.lanes

    @njit(forceinline=True)
    def prompt(d: int, pair: int, scratch: int) -> None:
        rows = load_i64(int64(d + 40))
        for group in range(2 * pair, min(2 * pair + 2, (rows + lanes - 1) // lanes)):
            blocks, tokens = load_i64(int64(d + 32)), load_i64(int64(d + 24))
            base = load_i64(int64(d + 8)) + group * blocks * block_bytes
            stride, add = load_i64(int64(d + 48)), load_i64(int64(d + 56))
            y = load_i64(int64(d + 16)) + group * lanes * 4
            valid = min(rows - group * lanes, lanes)
            x, dx = load_i64(int64(d + 64)), load_i64(int64(d + 72))
            for t in range(0, tokens, 4):
                # fours beyond the last token repeat it, and the result is not kept
                x0 = x + t * dx
                x1, x2 = x + min(t + 1, tokens - 1) * dx, x + min(t + 2, tokens - 1) * dx
                x3 = x + min(t + 3, tokens - 1) * dx
                a, b, c, e = zero(), zero(), zero(), zero()
                q = base
                for at in range(0, 4 * blocks, 4):
                    w = load(int64(q))
                    a = fma(w, splat_load(int64(x0 + at)), a)
                    b = fma(w, splat_load(int64(x1 + at)), b)
                    c = fma(w, splat_load(int64(x2 + at)), c)
                    e = fma(w, splat_load(int64(x3 + at)), e)
                    q += block_bytes
                put(y + t * stride, a, valid, add)
                if t + 1 < tokens:
                    put(y + (t + 1) * stride, b, valid, add)
                if t + 2 < tokens:
                    put(y + (t + 2) * stride, c, valid, add)
                if t + 3 < tokens:
                    put(y + (t + 3) * stride, e, valid, add)

    return build_matmul(ops, BlockBytes(block_bytes, 4, 4, 0, 0), one, prompt)


def build_matmul_f32(ops: Ops) -> Any:
    """Weights as they are."""
    return _build(ops, ops.load_floats, 4)


def build_matmul_f16(ops: Ops) -> Any:
    """Widened when loaded: exact."""
    return _build(ops, ops.load_halves, 2)


def build_matmul_bf16(ops: Ops) -> Any:
    """Widened when loaded: exact."""
    return _build(ops, ops.load_bfloats, 2)
