"""The loops around every product: descriptors, groups of weight rows, rows of activations; `products` has the body.

One launch can do several products (q, k, v; gate and up; the experts of a layer): `arguments` is a slot with their
number, and from byte 128 on one descriptor of sixteen int64 slots for each product:

    0 first item   1 weights   2 out           3 rows of x   4 blocks in a row   5 weight rows   6 out row bytes   7 add
    8 quants       9 quants row bytes         10 scales     11 scales row bytes 12 sums         13 sums row bytes

An item is a group of `lanes` weight rows. Rows of activations go by many, by few or alone (`isa.Tiles`); whatever the
way, a result's additions are the same in the same order.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.abi import LIST_AT, PRODUCT_BYTES
from edgerun.kernels.formats.base import Format, Plain, Quantised
from edgerun.kernels.isa import Isa, Tiles
from edgerun.kernels.products import tile
from edgerun.kernels.simd import load_i64
from edgerun.kernels.tile_floats import float_rows
from edgerun.kernels.tile_products import rows_by_tiles, tile_rows


def kernel_signature() -> Any:
    """(arguments address, low, high) -> None."""
    return signature(types.void, types.int64, types.int64, types.int64)


def tiles_of(isa: Isa, format: Format) -> Tiles:
    """What a product of this format does together."""
    return isa.float_tiles if isinstance(format, Plain) else isa.tiles


def _rows_left(one_tile: Any, groups: int) -> Any:
    """(descriptor, item, end, row, rows) -> None: the rows from `row` on, one by one."""

    @njit(forceinline=True)
    def rows_left(d: int, item: int, end: int, row: int, rows: int) -> None:
        while row < rows:
            for at in range(item, end, groups):
                one_tile(int64(d), int64(at), int64(end), int64(row), int64(0))
            row += 1

    return rows_left


def _several_rows(some_tile: Any, some: int, groups: int, fewer: int, rest: Any) -> Any:
    """As `rows_left`, by `some` rows at a time while there are more than `fewer`; `rest` does those that are left."""

    @njit(forceinline=True)
    def several_rows(d: int, item: int, end: int, row: int, rows: int) -> None:
        while rows - row > fewer and rows >= some:
            first = min(row, rows - some)  # the last tile does some rows again, and does not store them
            for at in range(item, end, groups):
                some_tile(int64(d), int64(at), int64(end), int64(first), int64(row - first))
            row = first + some
        rest(d, item, end, row, rows)

    return several_rows


def build_matmul(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    some_items = _some_items(isa, format)

    def matmul(arguments: int, low: int, high: int) -> None:
        count = load_i64(int64(arguments))
        d = arguments + LIST_AT
        index = 0
        item = low
        while item < high:
            while index + 1 < count and load_i64(int64(d + PRODUCT_BYTES)) <= item:
                d += PRODUCT_BYTES
                index += 1
            end = high
            if index + 1 < count:
                end = min(end, load_i64(int64(d + PRODUCT_BYTES)))
            item = some_items(d, item, end)

    return matmul, kernel_signature()


def _some_items(isa: Isa, format: Format) -> Any:
    """(descriptor, item, end) -> the first of the items item .. end - 1 that is still to be done."""
    if isa.tile_products and isinstance(format, Plain) and format.tile_products:
        floats_by_tiles = float_rows(format)

        @njit(forceinline=True)
        def all_by_tiles(d: int, item: int, end: int) -> int:
            floats_by_tiles(d, item, end)
            return end

        return all_by_tiles
    all_rows, together = _all_rows(isa, format)

    @njit(forceinline=True)
    def whole_tiles(d: int, item: int, end: int) -> int:
        stop: int = min(item + together, end)
        all_rows(d, item, stop, int64(0), load_i64(int64(d + 24)))
        return stop

    if not (isa.tile_products and isinstance(format, Quantised)):
        return whole_tiles
    by_tiles, most_tiles = tile_rows(format)
    rows_by_tiles_of = rows_by_tiles(format)

    @njit(forceinline=True)
    def tiles_first(d: int, item: int, end: int) -> int:
        rows = load_i64(int64(d + 24))
        done = rows_by_tiles_of(rows) if most_tiles(d) > 0 else int64(0)
        if done > 0:
            by_tiles(d, item, end, done)
        while done < rows and item < end:
            stop = min(item + together, end)
            all_rows(d, item, stop, done, rows)
            item = stop
        return end

    return tiles_first


def _all_rows(isa: Isa, format: Format) -> tuple[Any, int]:
    """A function as `rows_left`, by as many rows at a time as `isa.Tiles` says, and groups of weight rows that it does
    together."""
    tiles = tiles_of(isa, format)
    together = tiles.together
    all_rows = _rows_left(tile(isa, format, 1, tiles.one), tiles.one)
    fewer = 1
    for rows, groups in reversed(tiles.several):
        all_rows = _several_rows(tile(isa, format, rows, groups), rows, groups, fewer, all_rows)
        fewer = rows
    return all_rows, together
