"""GGUF rows to the packed layout at memory speed: the same result as `layout.pack`, bit for bit.

Arguments (int64 slots): 0 rows' first byte, 1 row bytes, 2 rows, 3 out, 4 blocks in a row, 5 the rows' numbers (i32; 0:
they follow each other). An item is a group of lanes rows; rows that do not exist become zeros.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types, uint8

from edgerun.kernels.formats.base import Format, Plain, swap_masks
from edgerun.kernels.isa import Isa
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.simd import I8, I16, I32, I64, function, load_i64, load_u32, store_u8, transposed

_UNITS = {1: I8, 2: I16, 4: I32}


@njit(forceinline=True)
def _number(chosen: int, row: int) -> int:
    """Of a row among those that there are."""
    return int64(load_u32(int64(chosen + 4 * row))) if chosen else int64(row)


def build_pack(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    if isinstance(format, Plain):
        return _build_pack_floats(isa, format)
    lanes, block_bytes = isa.lanes, format.bytes
    move, turn = _mover(format, lanes), _turner(format, lanes)

    def pack(arguments: int, low: int, high: int) -> None:
        source, row_bytes = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        rows, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        blocks, chosen = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        for group in range(low, high):
            valid = min(lanes, rows - group * lanes)
            target = out + group * blocks * block_bytes * lanes
            if valid < lanes:
                for i in range(blocks * block_bytes * lanes):
                    store_u8(int64(target + i), uint8(0))
            for b in range(blocks):
                for r in range(valid):
                    row = source + _number(chosen, group * lanes + r) * row_bytes
                    move(int64(row + b * block_bytes), int64(target), int64(r))
                turn(int64(target))
                target += block_bytes * lanes

    return pack, kernel_signature()


def _build_pack_floats(isa: Isa, format: Plain) -> Any:
    """Of single weights: `lanes` columns of a whole group at once."""
    lanes, weight_bytes = isa.lanes, format.bytes
    move, transpose = _mover(format, lanes), _transposer(format, lanes)

    def pack(arguments: int, low: int, high: int) -> None:
        source, row_bytes = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        rows, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        cols, chosen = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        for group in range(low, high):
            valid = min(lanes, rows - group * lanes)
            target = out + group * cols * weight_bytes * lanes
            col = 0
            if valid < lanes:
                for i in range(cols * weight_bytes * lanes):
                    store_u8(int64(target + i), uint8(0))
            elif not chosen:
                first = source + group * lanes * row_bytes
                while col + lanes <= cols:
                    at = col * weight_bytes
                    transpose(int64(first + at), int64(row_bytes), int64(target + at * lanes))
                    col += lanes
            while col < cols:
                at = col * weight_bytes
                for r in range(valid):
                    row = source + _number(chosen, group * lanes + r) * row_bytes
                    move(int64(row + at), int64(target + at * lanes), int64(r))
                col += 1

    return pack, kernel_signature()


def _mover(format: Format, lanes: int) -> Any:
    """(source, out, row): a row's block, each unit of each field among its lane's neighbours."""

    def emit(b: Any, source: Any, out: Any, row: Any) -> None:
        for field, start in zip(format.fields, format.starts, strict=True):
            kind = _UNITS[field.unit]
            first = b.add(out, b.mul(row, ir.Constant(I64, field.unit)))
            for t in range(field.count):
                unit = _load(b, b.add(source, ir.Constant(I64, field.source + field.unit * t)), kind)
                _store(b, unit, b.add(first, ir.Constant(I64, (start + field.unit * t) * lanes)))

    return function((types.int64,) * 3, types.void, emit)


def _turner(format: Format, lanes: int) -> Any:
    """(out): the bits of a packed block's words as its fields want them."""
    words = ir.VectorType(I32, lanes)

    def emit(b: Any, out: Any) -> None:
        for field, start in zip(format.fields, format.starts, strict=True):
            for t in range(field.count if field.swaps else 0):
                at = b.add(out, ir.Constant(I64, (start + field.unit * t) * lanes))
                word = _load(b, at, words)
                for shift, mask in swap_masks(field.swaps):
                    by, some = (ir.Constant(words, [value] * lanes) for value in (shift, mask))
                    moved = b.and_(b.xor(b.lshr(word, by), word), some)
                    word = b.xor(b.xor(word, moved), b.shl(moved, by))
                _store(b, word, at)

    return function((types.int64,), types.void, emit)


def _transposer(format: Plain, lanes: int) -> Any:
    """(source, row bytes, out): `lanes` rows of as many weights, turned."""
    kind = ir.VectorType(_UNITS[format.bytes], lanes)

    def emit(b: Any, source: Any, row_bytes: Any, out: Any) -> None:
        rows = []
        for _ in range(lanes):
            rows.append(_load(b, source, kind))
            source = b.add(source, row_bytes)
        for column, value in enumerate(transposed(b, rows)):
            _store(b, value, b.add(out, ir.Constant(I64, column * lanes * format.bytes)))

    return function((types.int64,) * 3, types.void, emit)


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1
