"""Packed rows back to floats, from a format's declaration: for rows that are added, not multiplied with.

A code comes out of the same chain of products that multiplies it, of one step, with activations that are 1 for its
column and 0 for its neighbours: so no format says twice what its codes mean. A code times its part's scale is an exact
integer, or has one rounding, and a minimum another: what `quants.dequantize` gives, bit for bit.

Arguments (int64 slots): 0 packed groups, 1 out (rows, columns) f32, 2 blocks in a row. An item is a group of lanes
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import int64, types

from edgerun.kernels.formats.activations import minimum_place
from edgerun.kernels.formats.base import Flat, Format, Quantised, Super
from edgerun.kernels.isa import Isa
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import emitter_of
from edgerun.kernels.ops.emitter import Emitter, Value
from edgerun.kernels.simd import I64, function, load_i64, transposed


def build_dequantize(isa: Isa, format: Format) -> Any:
    """The kernel of a format with codes."""
    assert isinstance(format, Quantised)
    lanes, cols, block_bytes, write = isa.lanes, format.cols, format.bytes * isa.lanes, _writer(isa, format)

    def dequantize(arguments: int, low: int, high: int) -> None:
        packed, out = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        blocks = load_i64(int64(arguments + 16))
        row_bytes = blocks * cols * 4
        for group in range(low, high):
            q, target = packed + group * blocks * block_bytes, out + group * lanes * row_bytes
            for b in range(blocks):
                write(int64(q + b * block_bytes), int64(target + b * cols * 4), int64(row_bytes))

    return dequantize, kernel_signature()


def _writer(isa: Isa, format: Quantised) -> Any:
    """(packed block, out, row bytes): the block's columns of `lanes` rows."""

    def emit(b: Any, q: Any, out: Any, row_bytes: Any) -> None:
        e = emitter_of(isa, b)
        waiting: dict[int, dict[int, Value]] = {}  # first of `lanes` neighbouring columns -> those that are there
        for column, weights in _weights(e, format, q):
            first = column - column % e.lanes
            mine = waiting.setdefault(first, {})
            mine[column] = weights
            if len(mine) == e.lanes:
                _write(e, [mine[at] for at in range(first, first + e.lanes)], b.add(out, _i64(4 * first)), row_bytes)
                del waiting[first]
        assert not waiting

    return function((types.int64,) * 3, types.void, emit)


def _write(e: Emitter, columns: list[Value], at: Value, row_bytes: Value) -> None:
    """L columns of L rows."""
    for row in transposed(e.b, columns):
        e.b.store(row, e.b.inttoptr(at, e.floats.as_pointer())).align = 1
        at = e.b.add(at, row_bytes)
    e.barrier()  # LLVM would begin with all columns at once and run out of registers


def _weights(e: Emitter, format: Quantised, q: Value) -> Iterator[tuple[int, Value]]:
    """(column, L x f32) of every column of a block."""
    for part in range(format.parts):
        if isinstance(format, Flat):
            low = format.low(e, q, part)
            scale = format.scale(e, q, part)
            for column, code in _scaled_codes(e, format, q, part, None):
                weight = e.fmul(e.to_floats(code), scale)
                yield column, weight if low is None else e.fadd(weight, low)
        else:
            assert isinstance(format, Super)
            d, low = format.d(e, q), _minimum(e, format, q, part)
            for column, code in _scaled_codes(e, format, q, part, format.scale(e, q, part)):
                weight = e.fmul(e.to_floats(code), d)
                yield column, weight if low is None else e.fsub(weight, low)


def _scaled_codes(
    e: Emitter, format: Quantised, q: Value, part: int, scale: Value | None
) -> Iterator[tuple[int, Value]]:
    """(column, scale * (code - beyond)) of a part, L x i32."""
    beyond = format.beyond or (128 if not format.top and e.signed_start else 0)
    start = e.constant(-beyond) if beyond else None
    for column, codes in format.codes(e, q, part):
        for j, own in enumerate(format.columns(e, column)):
            chain = e.chain(format.top, start, scale, None, format.signed_top)
            chain.step(codes, e.constant(1 << 8 * j))
            yield own, chain.end()


def _minimum(e: Emitter, format: Super, q: Value, part: int) -> Value | None:
    """What is taken off every weight of a part, L x f32."""
    minima = format.minima(e, q)
    if minima is None:
        return None
    scale, pairs = minima
    offset, half = minimum_place(format.part_cols, part)
    pair = next(each for each, at in pairs if at == offset)
    return e.fmul(e.to_floats(e.dot_pairs(None, pair, e.constant(1 << 16 * half))), scale)


def _i64(value: int) -> Value:
    return ir.Constant(I64, value)
