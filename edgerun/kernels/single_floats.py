"""What `tile_floats` does, for a single row of activations and without tiles: a row of a tile would be one of 16, and
tiles' weights have to be unpacked. Every addition is the one that `ops.tiles.multiply_float_tiles` does, of even and of
odd columns apart, so a row's bits are the same from either.

A tile's instruction takes subnormal numbers as zero, and so does the processor in here while it is told to.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types

from edgerun.kernels import simd
from edgerun.kernels.formats.activations import PARTS, PARTS_COLS
from edgerun.kernels.formats.base import Plain
from edgerun.kernels.ops.emitter import Value
from edgerun.kernels.ops.tiles import ROW_BYTES, ROWS, Tiles
from edgerun.kernels.simd import I8, I32, I64, function, load_i64, load_u8, store_u8
from edgerun.kernels.tile_frames import clear, finish, frame

_LANES = ROWS
_AHEAD_BYTES = 4096  # of weights that are asked for before they are needed
_WIDE_BYTES = 4 * PARTS * PARTS_COLS  # of a block of activations: see `formats.activations`
_SUBNORMALS = 0x8040  # of the control word of floats: results are flushed to zero, operands taken as zero


def single_row(format: Plain) -> Any:
    """A Numba function (descriptor, item, end, row) -> None: the products of groups of weight rows with a row of
    activations whose parts are there as f32, too."""
    col_bytes = format.bytes * _LANES
    block_bytes = PARTS_COLS * col_bytes
    columns, clear_sums, finish_row = _columns(format), clear(), finish()
    a_frame, flush, restore = frame(2 * ROW_BYTES + block_bytes), _flush(), _restore()

    @njit(forceinline=True)
    def last_columns(q: int, to: int, cols: int) -> None:
        """A block of the columns that are left, filled up with zeros."""
        for at in range(block_bytes):
            store_u8(int64(to + at), load_u8(int64(q + at)) if at < cols * col_bytes else 0)

    @njit(forceinline=True)
    def row_alone(d: int, item: int, end: int, row: int) -> None:
        base = a_frame()
        sums, block = base + ROW_BYTES, base + 2 * ROW_BYTES
        cols, add = load_i64(int64(d + 32)), load_i64(int64(d + 56))
        whole, left = cols // PARTS_COLS, cols % PARTS_COLS
        wide = load_i64(int64(d + 80)) + row * load_i64(int64(d + 88))
        out = load_i64(int64(d + 16)) + row * load_i64(int64(d + 48))
        flush(int64(base))
        for group in range(item - load_i64(int64(d)), end - load_i64(int64(d))):
            q = load_i64(int64(d + 8)) + group * cols * col_bytes
            clear_sums(int64(sums))
            if whole > 0:
                columns(int64(q), int64(whole), int64(wide), int64(sums))
            if left > 0:
                last_columns(q + whole * block_bytes, block, left)
                columns(int64(block), int64(1), int64(wide + whole * _WIDE_BYTES), int64(sums))
            valid = load_i64(int64(d + 40)) - group * _LANES
            finish_row(int64(sums), int64(out + group * ROW_BYTES), int64(valid), add)
        restore(int64(base))

    return row_alone


def _columns(format: Plain) -> Any:
    """(packed, blocks of columns, activations, sums) -> None: adds their products to the sums of 16 rows."""
    col_bytes = format.bytes * _LANES

    def emit(b: Any, packed: Any, blocks: Any, wide: Any, sums: Any) -> None:
        e = Tiles(b, _LANES)
        first_total = e.load_floats(sums, 0)
        before, loop, after = b.block, b.append_basic_block("columns"), b.append_basic_block("summed")
        b.branch(loop)
        b.position_at_end(loop)
        k, q, x, total = b.phi(I64), b.phi(I64), b.phi(I64), b.phi(e.floats)
        following = b.add(k, ir.Constant(I64, 1))
        later = (
            (k, ir.Constant(I64, 0), following),
            (q, packed, b.add(q, ir.Constant(I64, PARTS_COLS * col_bytes))),
            (x, wide, b.add(x, ir.Constant(I64, _WIDE_BYTES))),
            (total, first_total, _block(e, format, q, x, total)),
        )
        for phi, first, value in later:
            phi.add_incoming(first, before)
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", following, blocks), loop, after)
        b.position_at_end(after)
        e.store(sums, 0, later[-1][2])

    return function((types.int64,) * 4, types.void, emit)


def _block(e: Tiles, format: Plain, q: Value, x: Value, total: Value) -> Value:
    """The total after 32 columns."""
    products = [(plane, part) for plane, parts in enumerate(format.tile_products) for part in parts]
    chains = [[e.constant_float(0.0)] * 2 for _ in products]
    for column in range(PARTS_COLS):
        at = e.b.add(q, ir.Constant(I64, column * format.bytes * _LANES))
        if column * format.bytes * _LANES % ROW_BYTES == 0:
            e.prefetch(at, _AHEAD_BYTES)
        pieces = format.pieces(e, at)
        for chain, (plane, part) in zip(chains, products, strict=True):
            spread = e.spread_float(x, 4 * (part * PARTS_COLS + column))
            chain[column % 2] = e.fma(pieces[plane], spread, chain[column % 2])
    for even, odd in chains:
        total = e.fadd(total, e.fadd(even, odd))
    return total


def _flush() -> Any:
    """(address of 8 bytes) -> None: keeps the control word of floats there; from here on subnormal numbers are zero."""

    def emit(b: Any, address: Any) -> None:
        known, changed = _pointer(b, address, 0), _pointer(b, address, 4)
        b.call(simd.declare(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), [known.type]), (known,))
        word = b.load(b.bitcast(known, I32.as_pointer()))
        b.store(b.or_(word, ir.Constant(I32, _SUBNORMALS)), b.bitcast(changed, I32.as_pointer()))
        _take(b, changed)

    return function((types.int64,), types.void, emit)


def _restore() -> Any:
    """(address) -> None: what `_flush` kept there counts again."""
    return function((types.int64,), types.void, lambda b, address: _take(b, _pointer(b, address, 0)))


def _pointer(b: Any, address: Any, offset: int) -> Any:
    return b.inttoptr(b.add(address, ir.Constant(I64, offset)), I8.as_pointer())


def _take(b: Any, pointer: Any) -> None:
    b.call(simd.declare(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [pointer.type]), (pointer,))
