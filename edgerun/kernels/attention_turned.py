"""Values that are dimensions of keys, turned back: a position's numbers side by side, as other values lie."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, int64, njit, types

from edgerun.kernels.attention_layout import KEYS
from edgerun.kernels.simd import I64, function, load_f16, load_f32, store_f16, store_f32, transposed

_ELEMENTS = {2: ir.IntType(16), 4: ir.IntType(32)}  # whatever they mean: they are only moved


def build_turn(lanes: int, size: int) -> Any:
    """turn(source, dim, out, step): (dim, KEYS) elements of `size` bytes -> (KEYS, dim), rows `step` bytes apart."""
    square = _square(lanes, size, KEYS)
    load, store = (load_f16, store_f16) if size == 2 else (load_f32, store_f32)

    @njit(forceinline=True)
    def turn(source: int, dim: int, out: int, step: int) -> None:
        i = 0
        while i + lanes <= dim:
            for p in range(0, KEYS, lanes):
                square(int64(source + (i * KEYS + p) * size), int64(out + p * step + i * size), int64(step))
            i += lanes
        while i < dim:
            for p in range(KEYS):
                store(int64(out + p * step + i * size), load(int64(source + (i * KEYS + p) * size)))
            i += 1

    return turn


def build_turn_panels(lanes: int) -> Any:
    """turn(source, apart, dim, padded, out): f32, of panels `apart` bytes from one to the next to panels of values,
    0 from dim to padded (`kv_kernels.build_widen`)."""
    panel = 2 * lanes
    square = _square(lanes, 4, panel)

    @njit(forceinline=True)
    def turn(source: int, apart: int, dim: int, padded: int, out: int) -> None:
        i = 0
        while i + lanes <= dim:
            for p in range(0, KEYS, lanes):
                to = out + (i // panel * KEYS + p) * 4 * panel + i % panel * 4
                square(int64(source + p // panel * apart + (i * panel + p % panel) * 4), int64(to), int64(4 * panel))
            i += lanes
        while i < padded:
            for p in range(KEYS):
                x = float32(0.0)
                if i < dim:
                    x = load_f32(int64(source + p // panel * apart + (i * panel + p % panel) * 4))
                store_f32(int64(out + (i // panel * KEYS + p) * 4 * panel + i % panel * 4), x)
            i += 1

    return turn


def _square(lanes: int, size: int, apart: int) -> Any:
    """(source, out, step): `lanes` rows of as many elements, `apart` from one to the next, turned into rows `step`
    bytes apart."""
    kind = ir.VectorType(_ELEMENTS[size], lanes)

    def emit(b: Any, source: Any, out: Any, step: Any) -> None:
        rows = []
        for row in range(lanes):
            at = b.add(source, ir.Constant(I64, row * apart * size))
            rows.append(b.load(b.inttoptr(at, kind.as_pointer())))
            rows[-1].align = size
        for value in transposed(b, rows):
            b.store(value, b.inttoptr(out, kind.as_pointer())).align = size
            out = b.add(out, step)

    return function((types.int64,) * 3, types.void, emit)
