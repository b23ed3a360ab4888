"""What a thread that multiplies by tiles has on its stack, and the ends of such a product: see `tile_products` and
`tile_floats`. All of these are Numba functions of addresses."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types

from edgerun.kernels.ops.tiles import CONFIG_BYTES, ROW_BYTES, ROWS, ROWS_AT, SHAPES_AT, Tiles
from edgerun.kernels.simd import I8, I32, I64, function, store_i16, store_i64, store_u8

_LANES = ROWS


def frame(size: int) -> Any:
    """() -> address of `size` bytes, a multiple of 64."""

    def emit(b: Any) -> Any:
        with b.goto_entry_block():  # in a loop, the stack would grow with every turn
            memory = b.alloca(ir.ArrayType(I8, size + ROW_BYTES))
        at = b.add(b.ptrtoint(memory, I64), ir.Constant(I64, ROW_BYTES - 1))
        return b.and_(at, ir.Constant(I64, -ROW_BYTES))

    return function((), types.int64, emit)


def shapes(rows: tuple[int, ...], row_bytes: tuple[int, ...]) -> Any:
    """(frame, deep) -> None: lays out the tiles' shapes, rows and bytes of a row of each; 0 rows: `deep`."""
    each = tuple(zip(rows, row_bytes, strict=True))
    n_tiles = len(each)

    @njit(forceinline=True)
    def lay_out(base: int, deep: int) -> None:
        for word in range(0, CONFIG_BYTES, 8):
            store_i64(int64(base + word), int64(0))
        store_u8(int64(base), 1)  # of palettes the only one
        for tile in range(n_tiles):
            store_i16(int64(base + SHAPES_AT + 2 * tile), each[tile][1])
            store_u8(int64(base + ROWS_AT + tile), each[tile][0] if each[tile][0] else deep)

    return lay_out


def configure() -> Any:
    """(frame) -> None: takes the shapes at its beginning."""
    return function((types.int64,), types.void, lambda b, a: Tiles(b, _LANES).configure(a))


def release() -> Any:
    """() -> None."""
    return function((), types.void, lambda b: Tiles(b, _LANES).release())


def clear() -> Any:
    """(address) -> None: sums of a tile."""

    def emit(b: Any, address: Any) -> None:
        e = Tiles(b, _LANES)
        for j in range(ROWS):
            e.store(address, ROW_BYTES * j, e.constant_float(0.0))

    return function((types.int64,), types.void, emit)


def finish() -> Any:
    """(sums of a row, out, lanes of it, add) -> None."""

    def emit(b: Any, at: Any, out: Any, valid: Any, add: Any) -> None:
        e, zero = Tiles(b, _LANES), ir.Constant(I32, 0)
        lanes = b.trunc(valid, I32)
        known = b.select(b.icmp_signed("!=", add, ir.Constant(I64, 0)), lanes, zero)
        e.store_floats(out, e.fadd(e.load_floats(at, 0), e.load_some_floats(out, known)), lanes)

    return function((types.int64,) * 4, types.void, emit)
