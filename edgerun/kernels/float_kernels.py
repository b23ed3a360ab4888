"""F32, F16 and BF16 products over f32 activations: one block is one column of a group of rows."""

from __future__ import annotations

from typing import Any

from numba import int64, njit

from edgerun.kernels.matmul_driver import build_matmul
from edgerun.kernels.ops import Ops


def _build(ops: Ops, load: Any, weight_bytes: int) -> Any:
    splat_load, fma = ops.splat_load, ops.fma

    @njit(forceinline=True)
    def one(acc: Any, q: int, x: int, s: int, c: int) -> Any:
        return fma(load(int64(q)), splat_load(int64(x)), acc)

    @njit(forceinline=True)
    def four(acc: Any, q: int, x: int, dx: int, s: int, ds: int, c: int, dc: int) -> Any:
        w = load(int64(q))
        return (
            fma(w, splat_load(int64(x)), acc[0]),
            fma(w, splat_load(int64(x + dx)), acc[1]),
            fma(w, splat_load(int64(x + 2 * dx)), acc[2]),
            fma(w, splat_load(int64(x + 3 * dx)), acc[3]),
        )

    return build_matmul(ops, weight_bytes * ops.lanes, 4, 0, 0, one, four)


def build_matmul_f32(ops: Ops) -> Any:
    """Weights as they are."""
    return _build(ops, ops.load_floats, 4)


def build_matmul_f16(ops: Ops) -> Any:
    """Widened when loaded: exact."""
    return _build(ops, ops.load_halves, 2)


def build_matmul_bf16(ops: Ops) -> Any:
    """Widened when loaded: exact."""
    return _build(ops, ops.load_bfloats, 2)
