"""GGUF rows to the packed layout at memory speed: the same result as `layout.pack`, bit for bit.

Arguments (int64 slots): 0 rows' first byte, 1 row bytes, 2 rows, 3 out, 4 blocks in a row. An item is a group of
lanes rows; rows that do not exist become zeros.
"""

from __future__ import annotations

from typing import Any

from numba import int64, njit, uint8, uint32

from edgerun.kernels.formats.base import Field, Format, swap_masks
from edgerun.kernels.isa import Isa
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.simd import load_i64, load_u8, load_u16, load_u32, store_u8, store_u16, store_u32

_MOVES = {1: (load_u8, store_u8), 2: (load_u16, store_u16), 4: (load_u32, store_u32)}


def build_pack(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    lanes, source_bytes, packed_bytes = isa.lanes, format.bytes, format.bytes
    block = _nothing
    for field, start in zip(format.fields, format.starts, strict=True):
        block = _then(block, _mover(field, start * lanes, lanes))

    def pack(arguments: int, low: int, high: int) -> None:
        source, row_bytes = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        rows, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        blocks = load_i64(int64(arguments + 32))
        for group in range(low, high):
            valid = min(lanes, rows - group * lanes)
            target = out + group * blocks * packed_bytes * lanes
            if valid < lanes:
                for i in range(blocks * packed_bytes * lanes):
                    store_u8(int64(target + i), uint8(0))
            for b in range(blocks):
                for r in range(valid):
                    block(source + (group * lanes + r) * row_bytes + b * source_bytes, target, r)
                target += packed_bytes * lanes

    return pack, kernel_signature()


@njit(forceinline=True)
def _nothing(source: int, out: int, row: int) -> None:
    return


def _then(first: Any, second: Any) -> Any:
    @njit(forceinline=True)
    def both(source: int, out: int, row: int) -> None:
        first(source, out, row)
        second(source, out, row)

    return both


def _mover(field: Field, to: int, lanes: int) -> Any:
    """(source, out, row): a field of a row's block, each unit among its lane's neighbours."""
    (load, store), unit, count, start = _MOVES[field.unit], field.unit, field.count, field.source
    turned = _swapper(field)

    @njit(forceinline=True)
    def move(source: int, out: int, row: int) -> None:
        for t in range(count):
            store(int64(out + to + unit * (t * lanes + row)), turned(load(int64(source + start + unit * t))))

    return move


def _swapper(field: Field) -> Any:
    """A word with its bits rearranged."""

    @njit(forceinline=True)
    def same(word: Any) -> Any:
        return word

    turned = same
    for shift, mask in swap_masks(field.swaps):
        turned = _after(turned, shift, mask)
    return turned


def _after(before: Any, shift: int, mask: int) -> Any:
    @njit(forceinline=True)
    def swapped(word: Any) -> Any:
        word = uint32(before(word))
        moved = ((word >> uint32(shift)) ^ word) & uint32(mask)
        return uint32(word ^ moved ^ uint32(moved << uint32(shift)))

    return swapped
