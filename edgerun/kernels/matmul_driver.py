"""The loops around every product: descriptors, groups of weight rows, rows of activations; `products` has the body.

One launch can do several products (q, k, v; gate and up; the experts of a layer): `arguments` is a slot with their
number, and from byte 128 on one descriptor of sixteen int64 slots for each product:

    0 first item   1 weights   2 out           3 rows of x   4 blocks in a row   5 weight rows   6 out row bytes   7 add
    8 quants       9 quants row bytes         10 scales     11 scales row bytes 12 sums         13 sums row bytes

An item is a group of `lanes` weight rows. Rows of activations go by `Isa.many`, by `Isa.few` or alone; whatever the
way, a result's additions are the same in the same order.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit, types
from numba.core.typing import signature

from edgerun.kernels.formats.base import Format
from edgerun.kernels.isa import Isa
from edgerun.kernels.products import tile
from edgerun.kernels.simd import load_i64

DESCRIPTOR_BYTES = 128


def kernel_signature() -> Any:
    """(arguments address, low, high) -> None."""
    return signature(types.void, types.int64, types.int64, types.int64)


def build_matmul(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    (many, many_groups), (few, few_groups), one_groups = isa.many, isa.few, isa.one
    least = 1 if isa.few == isa.many else few  # fewer go by other tiles
    together = max(many_groups, few_groups, one_groups)
    many_tile, one_tile = tile(isa, format, many, many_groups), tile(isa, format, 1, one_groups)

    @njit(forceinline=True)
    def with_many(d: int, item: int, end: int, row: int, rows: int) -> Any:
        """Rows from `row` on while enough are left, of at least `many`; returns the first that is left."""
        while rows - row > least and rows >= many:
            first = min(row, rows - many)  # the last tile does some rows again, and does not store them
            for at in range(item, end, many_groups):
                many_tile(int64(d), int64(at), int64(end), int64(first), int64(row - first))
            row = first + many
        return row

    @njit(forceinline=True)
    def one_by_one(d: int, item: int, end: int, row: int, rows: int) -> None:
        while row < rows:
            for at in range(item, end, one_groups):
                one_tile(int64(d), int64(at), int64(end), int64(row), int64(0))
            row += 1

    if isa.few == isa.many:

        @njit(forceinline=True)
        def with_few(d: int, item: int, end: int, row: int, rows: int) -> Any:
            return row
    else:
        few_tile = tile(isa, format, few, few_groups)

        @njit(forceinline=True)
        def with_few(d: int, item: int, end: int, row: int, rows: int) -> Any:
            while rows - row > 1:
                first = min(row, rows - few)
                for at in range(item, end, few_groups):
                    few_tile(int64(d), int64(at), int64(end), int64(first), int64(row - first))
                row = first + few
            return row

    def matmul(arguments: int, low: int, high: int) -> None:
        count = load_i64(int64(arguments))
        d = arguments + DESCRIPTOR_BYTES
        index = 0
        item = low
        while item < high:
            while index + 1 < count and load_i64(int64(d + DESCRIPTOR_BYTES)) <= item:
                d += DESCRIPTOR_BYTES
                index += 1
            end = min(item + together, high)
            if index + 1 < count:
                end = min(end, load_i64(int64(d + DESCRIPTOR_BYTES)))
            rows = load_i64(int64(d + 24))
            row = with_many(d, item, end, 0, rows)
            row = with_few(d, item, end, row, rows)
            one_by_one(d, item, end, row, rows)
            item = end

    return matmul, kernel_signature()
