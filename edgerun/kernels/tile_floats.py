"""Products with weights that are floats by tiles of bf16 (`ops.tiles`), where a processor has them and a format says
how (`Plain.tile_products`).

A weight is one bf16 or the sum of two, an activation the sum of three (`formats.activations`). Of 32 columns at a time
each plane of weights is multiplied with its parts of activations, and every product is added to the same 16 x 16
results. So it is done for two rows of activations and more, and `single_floats` does the same additions for one.
(`products` sums column by column: results with these weights differ from other instruction sets' in their last bits.)

Weights of four groups of 16 rows, some hundred columns of them, are unpacked together where there are several tiles of
activations: a tile of these is loaded once for all four. Everything lies in a frame on the thread's stack:

    the tiles' shapes; sums of every tile of rows and every group; unpacked weights, step by step, group by group
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import int64, njit, types

from edgerun.kernels.formats.activations import PARTS_BYTES, PARTS_COLS
from edgerun.kernels.formats.base import Plain
from edgerun.kernels.layout import PARTS_GROUPS
from edgerun.kernels.ops.emitter import Value
from edgerun.kernels.ops.tiles import CONFIG_BYTES, ROW_BYTES, ROWS, TILE_BYTES, Tiles
from edgerun.kernels.simd import I64, function, load_i64
from edgerun.kernels.single_floats import single_row
from edgerun.kernels.tile_frames import clear, configure, finish, frame, release, shapes

_STEPS = 8  # of 32 columns, unpacked together
_MOST_TILES = 8  # of rows of activations
_AHEAD_BYTES = 4096  # of weights that are asked for before they are needed
_X, _W = PARTS_GROUPS, 7  # tiles: the first of three parts of activations; weights
_LANES = ROWS


def float_rows(format: Plain) -> Any:
    """A Numba function (descriptor, item, end) -> None: the products of groups of weight rows with all rows of
    activations (see `matmul_driver`)."""
    planes = len(format.tile_products)
    together, alone = _groups_of(format, PARTS_GROUPS), _groups_of(format, 1)
    row_alone = single_row(format)
    take_shapes, be_done = configure(), release()
    lay_out = shapes((0,) * _W + (ROWS,), (ROW_BYTES,) * (_W + 1))
    a_frame = frame(_weights_at(PARTS_GROUPS) + PARTS_GROUPS * _STEPS * planes * TILE_BYTES)

    @njit(forceinline=True)
    def by_tiles(d: int, item: int, end: int, all_rows: int) -> None:
        base = a_frame()
        deep = min(all_rows, ROWS)
        lay_out(int64(base), int64(deep))
        take_shapes(int64(base))
        for row in range(0, all_rows, _MOST_TILES * ROWS):
            rows = min(all_rows - row, _MOST_TILES * ROWS)
            done = max(deep - rows, 0)  # a tile is whole: with rows before these, which are not stored again
            at = item
            while at < end:
                if rows > deep and end - at >= PARTS_GROUPS:
                    together(d, at, base, row, rows, int64(0))
                    at += PARTS_GROUPS
                else:
                    alone(d, at, base, row - done, rows + done, done)
                    at += 1
        be_done()

    @njit(forceinline=True)
    def all_rows_of(d: int, item: int, end: int) -> None:
        rows = load_i64(int64(d + 24))
        if rows > 1 or load_i64(int64(d + 80)) == 0:
            by_tiles(d, item, end, rows)
        else:
            row_alone(d, item, end, 0)

    return all_rows_of


def _weights_at(groups: int) -> int:
    return CONFIG_BYTES + _MOST_TILES * groups * TILE_BYTES


def _groups_of(format: Plain, groups: int) -> Any:
    """(descriptor, item, frame, row, rows, done) -> None: some groups with some rows, a tile of them at least; the
    first `done` are not stored."""
    planes, block_bytes = len(format.tile_products), format.bytes * _LANES
    multiply, unpack_step, unpack_pair = _multiply(format, groups), _unpack(format, 16), _unpack(format, 1)
    unpack_last, nothing, clear_tile, finish_row = _unpack(format, 1, 1), _unpack(format, 1, 0), clear(), finish()
    weights_at, step_bytes = _weights_at(groups), groups * planes * TILE_BYTES
    chunk = _STEPS * PARTS_COLS

    @njit(forceinline=True)
    def unpack(q: int, to: int, cols: int) -> None:
        """Columns that are not there are zeros."""
        while cols >= PARTS_COLS:
            unpack_step(int64(q), int64(to))
            q, to, cols = q + PARTS_COLS * block_bytes, to + step_bytes, cols - PARTS_COLS
        if cols > 0:
            for pair in range(16):
                at, of_pair = q + 2 * pair * block_bytes, to + pair * ROW_BYTES
                if 2 * pair + 2 <= cols:
                    unpack_pair(int64(at), int64(of_pair))
                elif 2 * pair < cols:
                    unpack_last(int64(at), int64(of_pair))
                else:
                    nothing(int64(at), int64(of_pair))

    @njit
    def some_groups(d: int, item: int, base: int, row: int, rows: int, done: int) -> None:
        cols, group = load_i64(int64(d + 32)), item - load_i64(int64(d))
        x, x_stride = load_i64(int64(d + 64)), load_i64(int64(d + 72))
        packed, group_bytes = load_i64(int64(d + 8)) + group * cols * block_bytes, cols * block_bytes
        deep = min(rows, ROWS)
        n_tiles = (rows + deep - 1) // deep
        for tile in range(n_tiles * groups):
            clear_tile(int64(base + CONFIG_BYTES + tile * TILE_BYTES))
        for low in range(0, cols, chunk):
            count = min(cols - low, chunk)
            for g in range(groups):
                q = packed + g * group_bytes + low * block_bytes
                unpack(q, base + weights_at + g * planes * TILE_BYTES, count)
            for t in range(n_tiles):
                at = x + low // PARTS_COLS * PARTS_BYTES + (row + min(t * deep, rows - deep)) * x_stride
                multiply(
                    int64(base + weights_at),
                    int64((count + PARTS_COLS - 1) // PARTS_COLS),
                    int64(at),
                    int64(x_stride),
                    int64(base + CONFIG_BYTES + t * groups * TILE_BYTES),
                )
        out_stride, add = load_i64(int64(d + 48)), load_i64(int64(d + 56))
        for g in range(groups):
            out = load_i64(int64(d + 16)) + (group + g) * ROW_BYTES
            valid = load_i64(int64(d + 40)) - (group + g) * _LANES
            for t in range(n_tiles):
                first, sums = min(t * deep, rows - deep), base + CONFIG_BYTES + (t * groups + g) * TILE_BYTES
                for j in range(max(t * deep - first, done), deep):
                    to = out + (row + first + j) * out_stride
                    finish_row(int64(sums + j * ROW_BYTES), int64(to), int64(valid), int64(add))

    return some_groups


def _unpack(format: Plain, pairs: int, there: int = 2) -> Any:
    """(packed, to) -> None: pairs of columns, 64 bytes of each plane for a pair, of which `there` exist."""

    def emit(b: Any, q: Any, to: Any) -> None:
        e, col_bytes = Tiles(b, _LANES), format.bytes * _LANES
        if pairs > 1:
            for line in range(0, 2 * pairs * col_bytes, ROW_BYTES):
                e.prefetch(q, _AHEAD_BYTES + line)
        for pair in range(pairs):
            first = b.add(q, ir.Constant(I64, 2 * pair * col_bytes))
            second = b.add(first, ir.Constant(I64, col_bytes)) if there == 2 else first
            words = format.planes(e, first, second) if there else [e.constant(0)] * len(format.tile_products)
            for plane, each in enumerate(words):
                each = b.and_(each, e.constant(0xFFFF)) if there == 1 else each
                e.store(to, plane * TILE_BYTES + pair * ROW_BYTES, each)

    return function((types.int64,) * 2, types.void, emit)


def _multiply(format: Plain, groups: int) -> Any:
    """(unpacked weights, steps, activations, bytes from row to row of these, sums) -> None: adds the products of one
    tile of rows with some groups to the sums of each."""
    planes = format.tile_products
    parts = 1 + max(part for each in planes for part in each)

    def emit(b: Any, weights: Any, steps: Any, x: Any, stride: Any, sums: Any) -> None:
        e, line = Tiles(b, _LANES), ir.Constant(I64, ROW_BYTES)

        def moved(address: Value, offset: int) -> Value:
            return b.add(address, ir.Constant(I64, offset))

        for g in range(groups):
            e.load_tile(g, moved(sums, g * TILE_BYTES), line)
        before, loop, after = b.block, b.append_basic_block("steps"), b.append_basic_block("summed")
        b.branch(loop)
        b.position_at_end(loop)
        k, w, row = b.phi(I64), b.phi(I64), b.phi(I64)
        for part in range(parts):
            e.load_tile(_X + part, moved(row, part * ROW_BYTES), stride)
        for g in range(groups):
            for plane, with_parts in enumerate(planes):
                e.load_tile(_W, moved(w, (g * len(planes) + plane) * TILE_BYTES), line)
                for part in with_parts:
                    e.multiply_float_tiles(g, _X + part, _W)
        following = b.add(k, ir.Constant(I64, 1))
        for phi, first, later in (
            (k, ir.Constant(I64, 0), following),
            (w, weights, moved(w, groups * len(planes) * TILE_BYTES)),
            (row, x, moved(row, PARTS_BYTES)),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, b.block)
        b.cbranch(b.icmp_signed("<", following, steps), loop, after)
        b.position_at_end(after)
        for g in range(groups):
            e.store_tile(g, moved(sums, g * TILE_BYTES))

    return function((types.int64,) * 5, types.void, emit)
