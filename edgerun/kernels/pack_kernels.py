"""GGUF rows to the packed layout at memory speed: the same result as `layout.pack`, bit for bit.

Arguments (int64 slots): 0 rows' first byte, 1 row bytes, 2 rows, 3 out, 4 blocks in a row. An item is a group of lanes
rows; rows that do not exist become zeros.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, types, uint8

from edgerun.kernels.formats.base import Format, swap_masks
from edgerun.kernels.isa import Isa
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.simd import I8, I16, I32, I64, function, load_i64, store_u8

_UNITS = {1: I8, 2: I16, 4: I32}


def build_pack(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    lanes, block_bytes = isa.lanes, format.bytes
    move = _mover(format, lanes)

    def pack(arguments: int, low: int, high: int) -> None:
        source, row_bytes = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        rows, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        blocks = load_i64(int64(arguments + 32))
        for group in range(low, high):
            valid = min(lanes, rows - group * lanes)
            target = out + group * blocks * block_bytes * lanes
            if valid < lanes:
                for i in range(blocks * block_bytes * lanes):
                    store_u8(int64(target + i), uint8(0))
            for b in range(blocks):
                for r in range(valid):
                    row = source + (group * lanes + r) * row_bytes
                    move(int64(row + b * block_bytes), int64(target), int64(r))
                target += block_bytes * lanes

    return pack, kernel_signature()


def _mover(format: Format, lanes: int) -> Any:
    """(source, out, row): a row's block, each unit of each field among its lane's neighbours."""

    def emit(b: Any, source: Any, out: Any, row: Any) -> None:
        for field, start in zip(format.fields, format.starts, strict=True):
            kind = _UNITS[field.unit]
            first = b.add(out, b.mul(row, ir.Constant(I64, field.unit)))
            for t in range(field.count):
                at = b.add(source, ir.Constant(I64, field.source + field.unit * t))
                unit = b.load(b.inttoptr(at, kind.as_pointer()))
                unit.align = 1
                for shift, mask in swap_masks(field.swaps):
                    moved = b.and_(b.xor(b.lshr(unit, ir.Constant(I32, shift)), unit), ir.Constant(I32, mask))
                    unit = b.xor(b.xor(unit, moved), b.shl(moved, ir.Constant(I32, shift)))
                to = b.add(first, ir.Constant(I64, (start + field.unit * t) * lanes))
                b.store(unit, b.inttoptr(to, kind.as_pointer())).align = 1

    return function((types.int64,) * 3, types.void, emit)
