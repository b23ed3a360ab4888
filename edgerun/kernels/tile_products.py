"""Products of many rows of activations by tiles of 16 by 16 (`ops.tiles`), where a processor has them.

16 rows of weights are unpacked to bytes, some thousand columns at a time (`tile_weights`), and meet all rows of
activations while they are in the first-level cache. Sums, scales and additions are those of `products`, in the same
order: a result has the same bits whichever of the two made it.

Everything lies in a frame on the thread's stack:

    the tiles' shapes; slots that `multiply` reads; results of tile products; sums of every row; unpacked weights;
    what stands beside activations: scales and sums, 16 rows side by side
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from llvmlite import ir
from numba import int32, int64, njit, types

from edgerun.kernels.formats.activations import FORMS
from edgerun.kernels.formats.base import Flat, Quantised
from edgerun.kernels.ops.emitter import Value
from edgerun.kernels.ops.tiles import CONFIG_BYTES, ROW_BYTES, ROWS, TILE_BYTES, Tiles
from edgerun.kernels.simd import I64, function, load_i64, load_u32, store_i32, store_i64
from edgerun.kernels.tile_frames import clear, configure, finish, frame, release, shapes
from edgerun.kernels.tile_weights import TileWeights, unpack

_CHUNK_COLS = 1024  # of weights that are unpacked together
_MOST_TILES = 16  # of rows of activations that unpacked weights meet
_SIDE_BYTES = 128 << 10
_LANES = ROWS

_SLOTS = CONFIG_BYTES  # where `multiply` finds more of its arguments
_X_STRIDE, _SUMS = _SLOTS, _SLOTS + 8
_MADE = 128  # results of tile products
_RING = 4  # results of steps that are kept
_X, _W = 2, 3  # tiles; 0 and 1 are results. More of them at once are no gain: a processor has few to rename them to

Vectors = list[Value]


def rows_by_tiles(format: Quantised) -> Any:
    """A Numba function (rows of activations) -> how many of them, the first ones, are faster by tiles than by
    registers. Those of a last tile that would be half empty are not; and for fewer than `least` in all, unpacking takes
    longer than tiles save."""
    least, least_last = (28, 10) if isinstance(format, Flat) else (24, 7)

    @njit(forceinline=True)
    def by_tiles(rows: int) -> int:
        last = rows % ROWS
        found: int = rows - last if last < least_last else rows
        return found if rows >= least else 0

    return by_tiles


def tile_rows(format: Quantised) -> tuple[Any, Any]:
    """Numba functions (descriptor, item, end, rows) -> None, the products of groups of weight rows with the first rows
    of activations, and (descriptor) -> how many tiles of rows fit; 0: the product cannot be done so."""
    form = TileWeights(format)
    multiply = _multiply(form)
    unpack_block, clear_sums, finish_row = unpack(form), clear(), finish()
    take_shapes, be_done = configure(), release()
    a_frame = frame(_places(form)[2] + _SIDE_BYTES)
    side_bytes, x_each, sums_bytes = form.side_bytes, format.cols // form.x_cols, FORMS[format.form][1]
    block_bytes, unpacked_bytes = format.bytes * _LANES, form.steps * form.step_bytes
    chunk, steps = max(1, _CHUNK_COLS // format.cols), form.steps
    sums_at, weights_at, side_at = _places(form)
    lay_out = shapes(*_shapes(form))
    offsets = form.sums
    n_sums = len(offsets)
    block_cols = format.cols
    first_sum = offsets[0] if offsets else 0

    @njit(forceinline=True)
    def lay_aside(d: int, side: int, row: int, count: int, x_blocks: int) -> None:
        """Scales and sums of `count` rows from `row` on, block by block."""
        scales, scales_stride = load_i64(int64(d + 80)), load_i64(int64(d + 88))
        sums, sums_stride = load_i64(int64(d + 96)), load_i64(int64(d + 104))
        for j in range(count):
            scale, of_sums = scales + (row + j) * scales_stride, sums + (row + j) * sums_stride + first_sum
            to = side + 4 * j
            for k in range(x_blocks):
                store_i32(int64(to), int32(load_u32(int64(scale + 4 * k))))
                for s in range(n_sums):
                    word = load_u32(int64(of_sums + sums_bytes * k + 4 * s))
                    store_i32(int64(to + ROW_BYTES * (s + 1)), int32(word))
                to += side_bytes

    @njit(forceinline=True)
    def one_group(d: int, group: int, base: int, row: int, rows: int, deep: int, done: int) -> None:
        """Rows row .. row + rows - 1, by tiles of `deep`; the first `done` of them are not stored."""
        blocks = load_i64(int64(d + 32))
        x_stride, x = load_i64(int64(d + 72)), load_i64(int64(d + 64))
        weights = load_i64(int64(d + 8)) + group * blocks * block_bytes
        n_tiles = (rows + deep - 1) // deep
        tile_side = blocks * x_each * side_bytes
        store_i64(int64(base + _X_STRIDE), int64(x_stride))
        for t in range(n_tiles):
            clear_sums(int64(base + sums_at + t * TILE_BYTES))
        for low in range(0, blocks, chunk):
            count = min(chunk, blocks - low)
            for k in range(count):
                unpack_block(int64(weights + (low + k) * block_bytes), int64(base + weights_at + k * unpacked_bytes))
            for t in range(n_tiles):
                first, side = row + min(t * deep, rows - deep), base + side_at + t * tile_side
                store_i64(int64(base + _SUMS), int64(base + sums_at + t * TILE_BYTES))
                x_at = x + low * block_cols
                multiply(
                    int64(base + weights_at),
                    int64(count * steps),
                    int64(side + low * x_each * side_bytes),
                    int64(x_at + first * x_stride),
                    int64(base),
                )
        out_stride, add = load_i64(int64(d + 48)), load_i64(int64(d + 56))
        out = load_i64(int64(d + 16)) + group * 4 * _LANES
        valid = load_i64(int64(d + 40)) - group * _LANES
        for t in range(n_tiles):
            first = min(t * deep, rows - deep)
            for j in range(max(t * deep - first, done), deep):
                at = base + sums_at + t * TILE_BYTES + j * ROW_BYTES
                finish_row(int64(at), int64(out + (row + first + j) * out_stride), int64(valid), int64(add))

    @njit(forceinline=True)
    def most_tiles(d: int) -> int:
        """How many tiles of rows have their scales and sums in the frame."""
        tile_side = load_i64(int64(d + 32)) * x_each * side_bytes
        fitting: int = min(_MOST_TILES, _SIDE_BYTES // tile_side)
        return fitting

    @njit(forceinline=True)
    def by_tiles(d: int, item: int, end: int, rows: int) -> None:
        base = a_frame()
        blocks = load_i64(int64(d + 32))
        first_item = load_i64(int64(d))
        deep = min(rows, ROWS)
        lay_out(int64(base), int64(deep))
        take_shapes(int64(base))
        at_once = most_tiles(d) * deep
        tile_side = blocks * x_each * side_bytes
        for row in range(0, rows, at_once):
            count, done = min(at_once, rows - row), 0
            if count < deep:  # with some again, which are not stored
                row, count, done = rows - deep, deep, deep - count
            for t in range((count + deep - 1) // deep):
                first = row + min(t * deep, count - deep)
                lay_aside(d, base + side_at + t * tile_side, first, deep, blocks * x_each)
            for at in range(item, end):
                one_group(d, at - first_item, base, row, count, deep, done)
        be_done()

    return by_tiles, most_tiles


def _places(form: TileWeights) -> tuple[int, int, int]:
    """In a frame: where sums are, unpacked weights, what stands beside activations."""
    results = _RING * TILE_BYTES * len(form.planes)
    sums = _MADE + results
    weights = sums + _MOST_TILES * TILE_BYTES
    blocks = max(1, _CHUNK_COLS // form.format.cols)
    return sums, weights, weights + blocks * form.steps * form.step_bytes


def _shapes(form: TileWeights) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each tile rows, 0: as many as rows of activations go together, and bytes of a row."""
    cols = min(form.step_cols, ROW_BYTES)
    return (0, 0, 0, cols // 4), (ROW_BYTES, ROW_BYTES, cols, ROW_BYTES)


def _load(e: Tiles, address: Value, offset: int, kind: Any) -> Value:
    value = e.load(address, offset, kind)
    value.align = 64
    return value


def _multiply(form: TileWeights) -> Any:
    """(unpacked weights, steps, what stands beside activations, activations, frame) -> None: adds the products of a
    tile of rows to their sums."""

    def emit(b: Any, weights: Any, steps: Any, side: Any, x: Any, frame: Any) -> None:
        e = Tiles(b, _LANES, True)
        (_Parts if isinstance(form.format, Flat) else _Blocks)(e, form, weights, side, x, frame).emit(steps)

    return function((types.int64,) * 5, types.void, emit)


class _Multiply:
    """Tile products of some steps are under way while those of a step before are taken to floats and added to 16 rows'
    sums, which stay in registers: what a tile was just stored to is not soon read."""

    behind: ClassVar[int]  # steps from a tile product to the use of its result

    def __init__(self, e: Tiles, form: TileWeights, weights: Value, side: Value, x: Value, frame: Value) -> None:
        self._e, self._b, self._form = e, e.b, form
        self._weights, self._side, self._x, self._frame = weights, side, x, frame
        self._stride = e.load(frame, _X_STRIDE, I64)
        self._sums_at = e.load(frame, _SUMS, I64)

    def _at(self, address: Value, step: Value, each: int, offset: int = 0) -> Value:
        at = self._b.add(address, self._b.mul(step, ir.Constant(I64, each)))
        return self._b.add(at, ir.Constant(I64, offset)) if offset else at

    def emit(self, steps: Value) -> None:
        """All of it."""
        b, zero, behind = self._b, ir.Constant(I64, 0), ir.Constant(I64, self.behind)
        first = b.select(b.icmp_signed("<", steps, behind), steps, behind)

        def begin(k: Value, _: Vectors) -> Vectors:
            self._issue(k)
            return []

        def both(k: Value, sums: Vectors) -> Vectors:
            self._issue(k)
            return self._add(b.sub(k, behind), sums)

        self._loop(zero, first, [], begin)
        e = self._e
        sums = [_load(e, self._sums_at, ROW_BYTES * j, e.floats) for j in range(ROWS)]
        sums = self._loop(first, steps, sums, both)
        sums = self._loop(b.sub(steps, first), steps, sums, self._add)
        for j, value in enumerate(sums):
            e.store(self._sums_at, ROW_BYTES * j, value)

    def _issue(self, step: Value) -> None:
        raise NotImplementedError

    def _add(self, step: Value, sums: Vectors) -> Vectors:
        raise NotImplementedError

    def _made(self, step: Value, n_bytes: int) -> Value:
        """Where a step's results go."""
        slot = self._b.and_(step, ir.Constant(I64, _RING - 1))
        return self._at(self._b.add(self._frame, ir.Constant(I64, _MADE)), slot, n_bytes)

    def _loop(self, low: Value, high: Value, carried: Vectors, body: Callable[[Value, Vectors], Vectors]) -> Vectors:
        """For steps low .. high - 1."""
        b, one = self._b, ir.Constant(I64, 1)
        before, loop, after = b.block, b.append_basic_block("steps"), b.append_basic_block("stepped")
        b.cbranch(b.icmp_signed("<", low, high), loop, after)
        b.position_at_end(loop)
        k, phis = b.phi(I64), [b.phi(value.type) for value in carried]
        made = body(k, phis)
        following, end = b.add(k, one), b.block
        b.cbranch(b.icmp_signed("<", following, high), loop, after)
        k.add_incoming(low, before)
        k.add_incoming(following, end)
        b.position_at_end(after)
        results = []
        for first, phi, value in zip(carried, phis, made, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, end)
            result = b.phi(value.type)
            result.add_incoming(first, before)
            result.add_incoming(value, end)
            results.append(result)
        return results


class _Parts(_Multiply):
    """Parts with a float scale each."""

    behind = 3

    def _issue(self, step: Value) -> None:
        e, form = self._e, self._form
        e.load_tile(_X, self._at(self._x, step, form.step_cols), self._stride)
        e.load_tile(_W, self._at(self._weights, step, form.step_bytes), ir.Constant(I64, ROW_BYTES))
        e.clear_tile(0)
        e.multiply_tiles(0, _X, _W, True)
        e.store_tile(0, self._made(step, TILE_BYTES))

    def _add(self, step: Value, sums: Vectors) -> Vectors:
        e, b, form = self._e, self._b, self._form
        weights, made = self._at(self._weights, step, form.step_bytes), self._made(step, TILE_BYTES)
        each = form.x_cols // form.step_cols
        block = b.udiv(step, ir.Constant(I64, each)) if each > 1 else step
        side = self._at(self._side, block, form.side_bytes)
        scale = _load(e, weights, form.codes_bytes, e.floats)
        low = _load(e, weights, form.codes_bytes + ROW_BYTES, e.floats) if form.sums else None
        results = []
        for j, total in enumerate(sums):
            product = e.to_floats(_load(e, made, ROW_BYTES * j, e.words))
            total = e.fma(e.fmul(product, e.spread_float(side, 4 * j)), scale, total)
            if low is not None:
                total = e.fma(e.spread_float(side, ROW_BYTES + 4 * j), low, total)
            results.append(total)
        return results


class _Blocks(_Multiply):
    """Blocks of 256 columns: plane after plane of each quarter, then d and the minima."""

    behind = 3

    @property
    def _result_bytes(self) -> int:
        return len(self._form.planes) * TILE_BYTES

    def _issue(self, step: Value) -> None:
        e, form = self._e, self._form
        for total in range(len(form.planes)):
            e.clear_tile(total)
        for quarter in range(4):
            e.load_tile(_X, self._at(self._x, step, form.step_cols, ROW_BYTES * quarter), self._stride)
            for total, plane in enumerate(form.planes):
                at = self._at(self._weights, step, form.step_bytes, total * form.plane_bytes + TILE_BYTES * quarter)
                e.load_tile(_W, at, ir.Constant(I64, ROW_BYTES))
                e.multiply_tiles(total, _X, _W, plane.signed)
        made = self._made(step, self._result_bytes)
        for total in range(len(form.planes)):
            e.store_tile(total, self._b.add(made, ir.Constant(I64, TILE_BYTES * total)))

    def _add(self, step: Value, sums: Vectors) -> Vectors:
        e, form = self._e, self._form
        made = self._made(step, self._result_bytes)
        factors = self._at(self._weights, step, form.step_bytes, form.codes_bytes)
        side = self._at(self._side, step, form.side_bytes)
        d = _load(e, factors, 0, e.floats)
        results = []
        for j, known in enumerate(sums):
            total: Value = None
            for plane, each in enumerate(form.planes):
                product = e.shl(_load(e, made, TILE_BYTES * plane + ROW_BYTES * j, e.words), each.shift)
                total = product if total is None else e.add(total, product)
            value = e.fmul(e.to_floats(total), d)
            if form.sums:
                low: Value | None = None
                for index in range(len(form.sums)):
                    pairs = _load(e, factors, ROW_BYTES * (2 + index), e.pairs)
                    low = e.dot_pairs(low, pairs, e.spread(side, ROW_BYTES * (1 + index) + 4 * j))
                value = e.fsub(value, e.fmul(e.to_floats(low), _load(e, factors, ROW_BYTES, e.floats)))
            results.append(e.fma(value, e.spread_float(side, 4 * j), known))
        return results
