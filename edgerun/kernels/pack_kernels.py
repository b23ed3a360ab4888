"""GGUF rows to the packed layout at memory speed: the same result as `layout.pack`, bit for bit.

Arguments (int64 slots): 0 rows' first byte, 1 row bytes, 2 rows, 3 out, 4 blocks in a row, 5 the rows' numbers (i32; 0:
they follow each other). An item is a group of lanes rows; rows that do not exist become zeros.

Whole groups go past the caches (`_store_past`) where the packed bytes begin at a line of memory, as models' do: what
nobody reads in this moment then neither is read from memory before it is written nor drives out what computes.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from llvmlite import ir
from numba import int64, njit, types, uint8

from edgerun.kernels.formats.base import Field, Format, Plain, swap_masks
from edgerun.kernels.isa import Isa
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.simd import (
    I8,
    I16,
    I32,
    I64,
    function,
    load_i64,
    load_u32,
    shuffle,
    store_u8,
    transposed,
    vector_of,
)

_UNITS = {1: I8, 2: I16, 4: I32}
_LINE = 64  # bytes of memory that are written together
_LEAST_PAST = 16  # bytes of a store past the caches


@njit(forceinline=True)
def _number(chosen: int, row: int) -> int:
    """Of a row among those that there are."""
    return int64(load_u32(int64(chosen + 4 * row))) if chosen else int64(row)


def build_pack(isa: Isa, format: Format) -> Any:
    """The kernel of a format."""
    lanes, block_bytes = isa.lanes, format.bytes
    pack_group = _float_group(isa, format) if isinstance(format, Plain) else _group(isa, format)

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
            pack_group(source, row_bytes, chosen, group * lanes, valid, blocks, target)
        _settle()

    return pack, kernel_signature()


def _group(isa: Isa, format: Format) -> Any:
    """(source, row bytes, chosen, the first row, how many there are of it and the next, blocks, target) -> None."""
    lanes, block_bytes, grain = isa.lanes, format.bytes, _grain(isa, format)
    move, turn, move_all = _mover(format, lanes), _turner(format, lanes), _group_mover(format, lanes, grain)

    @njit(forceinline=True)
    def pack_group(source: int, row_bytes: int, chosen: int, first: int, valid: int, blocks: int, target: int) -> None:
        at_once = valid == lanes and not chosen and target % grain == 0
        for b in range(blocks):
            if at_once:
                at = source + first * row_bytes + b * block_bytes
                move_all(int64(at), int64(row_bytes), int64(target))
            else:
                for r in range(valid):
                    row = source + _number(chosen, first + r) * row_bytes
                    move(int64(row + b * block_bytes), int64(target), int64(r))
                turn(int64(target))
            target += block_bytes * lanes

    return pack_group


def _float_group(isa: Isa, format: Plain) -> Any:
    """As `_group`, of single weights: as many columns of a whole group at once as `lanes` words have."""
    lanes, weight_bytes, grain = isa.lanes, format.bytes, _grain(isa, format)
    together = lanes * 4 // weight_bytes
    move, transpose = _mover(format, lanes), _transposer(format, lanes, grain)

    @njit(forceinline=True)
    def pack_group(source: int, row_bytes: int, chosen: int, first: int, valid: int, cols: int, target: int) -> None:
        col = 0
        if valid == lanes and not chosen and target % grain == 0:
            while col + together <= cols:
                at = source + first * row_bytes + col * weight_bytes
                transpose(int64(at), int64(row_bytes), int64(target + col * weight_bytes * lanes))
                col += together
        while col < cols:
            at = col * weight_bytes
            for r in range(valid):
                row = source + _number(chosen, first + r) * row_bytes
                move(int64(row + at), int64(target + at * lanes), int64(r))
            col += 1

    return pack_group


def _grain(isa: Isa, format: Format) -> int:
    """Bytes that the address of every packed block is a multiple of, where that of the first begins a line."""
    return gcd(_LINE, format.bytes * isa.lanes)


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
                _store(b, _swapped(b, _load(b, at, words), field), at)

    return function((types.int64,), types.void, emit)


def _swapped(b: Any, word: Any, field: Field) -> Any:
    """The bits of a vector of a field's words as the field wants them."""
    for shift, mask in swap_masks(field.swaps):
        by, some = (ir.Constant(word.type, [value] * word.type.count) for value in (shift, mask))
        moved = b.and_(b.xor(b.lshr(word, by), word), some)
        word = b.xor(b.xor(word, moved), b.shl(moved, by))
    return word


def _group_mover(format: Format, lanes: int, grain: int) -> Any:
    """(source, row bytes, out): the blocks of a whole group of rows, words as vectors that are turned: one by one they
    take three times as long."""

    def emit(b: Any, source: Any, row_bytes: Any, out: Any) -> None:
        rows = [source]
        for _ in range(lanes - 1):
            rows.append(b.add(rows[-1], row_bytes))
        for field, start in zip(format.fields, format.starts, strict=True):
            t = 0
            while t < field.count:
                width = min(lanes, 1 << (field.count - t).bit_length() - 1) if field.unit == 4 else 1
                at = ir.Constant(I64, field.source + field.unit * t)
                kind = ir.VectorType(_UNITS[field.unit], width) if width > 1 else _UNITS[field.unit]
                found = [_load(b, b.add(row, at), kind) for row in rows]
                columns = transposed(b, found) if width > 1 else [vector_of(b, found)]
                for column, value in enumerate(columns):
                    place = (start + field.unit * (t + column)) * lanes
                    _store_past(b, _swapped(b, value, field), out, place, grain)
                t += width

    return function((types.int64,) * 3, types.void, emit)


def _transposer(format: Plain, lanes: int, grain: int) -> Any:
    """(source, row bytes, out): `lanes` rows of as many words, turned; a word is one column or two."""
    kind, columns = ir.VectorType(I32, lanes), 4 // format.bytes

    def emit(b: Any, source: Any, row_bytes: Any, out: Any) -> None:
        rows = []
        for _ in range(lanes):
            rows.append(_load(b, source, kind))
            source = b.add(source, row_bytes)
        for number, words in enumerate(transposed(b, rows)):
            units = b.bitcast(words, ir.VectorType(_UNITS[format.bytes], columns * lanes))
            apart = [at for column in range(columns) for at in range(column, columns * lanes, columns)]
            _store_past(b, shuffle(b, units, units, apart), out, 4 * number * lanes, grain)

    return function((types.int64,) * 3, types.void, emit)


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, value: Any, address: Any) -> Any:
    stored = b.store(value, b.inttoptr(address, value.type.as_pointer()))
    stored.align = 1
    return stored


def _store_past(b: Any, value: Any, out: Any, place: int, grain: int) -> None:
    """Store a vector at a place of `out`, a multiple of `grain`: past the caches where a processor can do that."""
    stored = _store(b, value, b.add(out, ir.Constant(I64, place)))
    stored.align = gcd(grain, place)
    if stored.align >= _LEAST_PAST:
        stored.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(I32, 1)]))


# What was stored past the caches comes before whatever the thread stores next.
_settle = function((), types.void, lambda b: b.fence("seq_cst"))
