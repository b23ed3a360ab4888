"""Weights of 16 rows as tile products take them: bytes, unpacked once for many rows of activations.

Of every *step* of a `Flat` format, which is a part, 16 or 32 columns under a float scale:

    the codes less `beyond`, signed, 64 bytes for four columns
    16 x f32 scale, and where there is one, 16 x f32 `low`

Of every step of a `Super` format, which is a block of 256 columns: codes less `beyond` times their part's scale, so
that one sum goes over the whole block. Where such a weight needs more than a byte there are two *planes*: its low
bytes, unsigned, then its high ones, signed, whose sum counts 256 times.

    plane after plane, 64 bytes for four columns
    16 x f32 d, and with minima 16 x f32 their scale, then 16 times a pair of i16 minima for each of `minima`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llvmlite import ir
from numba import types

from edgerun.kernels.formats.activations import MIN_SUMS_16, MIN_SUMS_32, Q8_COLS, SCALED_SUM
from edgerun.kernels.formats.base import Flat, Quantised, Super
from edgerun.kernels.ops.emitter import Value, simd_constant
from edgerun.kernels.ops.tiles import Tiles
from edgerun.kernels.simd import I64, function

_LANES = 16
_VECTOR_BYTES = 64  # of 16 f32 or i32


@dataclass(frozen=True)
class Plane:
    """One byte of every weight, in its place."""

    signed: bool
    shift: int  # bits by which the sum of its products is moved up


@dataclass(frozen=True)
class TileWeights:
    """How a format's weights lie unpacked."""

    format: Quantised

    @property
    def step_cols(self) -> int:
        """Columns whose products make one exact sum."""
        return self.format.cols if isinstance(self.format, Super) else self.format.part_cols

    @property
    def steps(self) -> int:
        """Of a block."""
        return self.format.cols // self.step_cols

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """Of codes."""
        format = self.format
        if isinstance(format, Flat):
            return (Plane(True, 0),)
        assert isinstance(format, Super)
        codes = (-format.beyond, format.top - format.beyond) if format.top else (-128, 127)
        scales = (1, 1) if type(format).scale is Super.scale else format.scales
        weights = [code * scale for code in codes for scale in scales]
        low, high = min(weights), max(weights)
        if low >= -128 and high <= 127:
            return (Plane(True, 0),)
        if low >= 0 and high <= 255:
            return (Plane(False, 0),)
        assert low >= -32768 and high <= 32767, f"weights of {format.name} have more than two bytes"
        return Plane(False, 0), Plane(True, 8)

    @property
    def plane_bytes(self) -> int:
        return _LANES * self.step_cols

    @property
    def codes_bytes(self) -> int:
        """Of a step."""
        return len(self.planes) * self.plane_bytes

    @property
    def sums(self) -> tuple[int, ...]:
        """Where in the sums of a row's block stands what a `Flat` format's `low`, or each pair of a `Super` format's
        minima, is multiplied with."""
        format = self.format
        if isinstance(format, Flat):
            return (SCALED_SUM,) if type(format).low is not Flat.low else ()
        assert isinstance(format, Super)
        if type(format).minima is Super.minima:
            return ()
        first = MIN_SUMS_32 if format.part_cols == 32 else MIN_SUMS_16
        return tuple(range(first, first + 2 * format.parts, 4))

    @property
    def step_bytes(self) -> int:
        """Of one step."""
        factors = 1 + len(self.sums) + (isinstance(self.format, Super) and bool(self.sums))
        return self.codes_bytes + _VECTOR_BYTES * factors

    # of what stands beside rows of activations, for each 16 of them and each block of theirs

    @property
    def x_cols(self) -> int:
        """Columns of a block of activations."""
        return self.format.cols if isinstance(self.format, Super) else Q8_COLS

    @property
    def side_bytes(self) -> int:
        """Of 16 rows' block: 16 x f32 scales, and 16 x 4 bytes for each of `sums`."""
        return _VECTOR_BYTES * (1 + len(self.sums))


def unpack(form: TileWeights) -> Any:
    """A Numba function (packed, to) -> None: one block of 16 rows of weights."""

    def emit(b: Any, q: Any, to: Any) -> None:
        _Unpack(Tiles(b, _LANES, True), form).emit(q, to)

    return function((types.int64,) * 2, types.void, emit)


class _Unpack:
    def __init__(self, e: Tiles, form: TileWeights) -> None:
        self._e, self._b, self._form = e, e.b, form

    def emit(self, q: Value, to: Value) -> None:
        format = self._form.format
        if isinstance(format, Flat):
            self._flat(format, q, to)
        else:
            assert isinstance(format, Super)
            self._super(format, q, to)

    def _put(self, to: Value, offset: int, value: Value) -> None:
        at = self._b.add(to, ir.Constant(I64, offset))
        self._b.store(value, self._b.inttoptr(at, value.type.as_pointer())).align = 64

    def _flat(self, format: Flat, q: Value, to: Value) -> None:
        e, b, form = self._e, self._b, self._form
        beyond = simd_constant(e.bytes, format.beyond)
        for part in range(format.parts):
            start = part * form.step_bytes
            for column, codes in self._straight(format, q, part):
                code = b.bitcast(codes, e.bytes)
                code = b.sub(code, beyond) if format.beyond else code
                self._put(to, start + _LANES * (column - part * format.part_cols), code)
            self._put(to, start + form.codes_bytes, format.scale(e, q, part))
            low = format.low(e, q, part)
            if low is not None:
                self._put(to, start + form.codes_bytes + _VECTOR_BYTES, low)
            e.barrier()

    def _super(self, format: Super, q: Value, to: Value) -> None:
        e, form = self._e, self._form
        for part in range(format.parts):
            scale = format.scale(e, q, part)
            for column, codes in self._straight(format, q, part):
                for plane, value in enumerate(self._scaled(format, codes, scale)):
                    self._put(to, plane * form.plane_bytes + _LANES * column, value)
            e.barrier()
        at = form.codes_bytes
        self._put(to, at, format.d(e, q))
        minima = format.minima(e, q)
        if minima is not None:
            self._put(to, at + _VECTOR_BYTES, minima[0])
            assert tuple(offset for _, offset in minima[1]) == form.sums
            for index, (pairs, _) in enumerate(minima[1]):
                self._put(to, at + _VECTOR_BYTES * (2 + index), pairs)

    def _scaled(self, format: Super, codes: Value, scale: Value | None) -> list[Value]:
        """The planes of four columns' weights."""
        e, b = self._e, self._b
        if scale is None:
            return [b.sub(b.bitcast(codes, e.bytes), simd_constant(e.bytes, format.beyond))]
        twice = b.bitcast(e.either(b.and_(scale, e.constant(0xFFFF)), e.shl(scale, 16)), e.pairs)
        eight, low_byte, high_byte = (simd_constant(e.pairs, value) for value in (8, 0x00FF, 0xFF00))
        pairs = b.bitcast(codes, e.pairs)
        if format.top:
            even, odd = b.and_(pairs, low_byte), b.lshr(pairs, eight)
        else:
            even, odd = b.ashr(b.shl(pairs, eight), eight), b.ashr(pairs, eight)
        if format.beyond:
            beyond = simd_constant(e.pairs, format.beyond)
            even, odd = b.sub(even, beyond), b.sub(odd, beyond)
        even, odd = b.mul(even, twice), b.mul(odd, twice)
        low = b.or_(b.and_(even, low_byte), b.shl(odd, eight))
        if len(self._form.planes) == 1:
            return [low]
        return [low, b.or_(b.lshr(even, eight), b.and_(odd, high_byte))]

    def _straight(self, format: Quantised, q: Value, part: int) -> list[tuple[int, Value]]:
        """(column, codes of it and the next three) of a part, whatever columns the format calls together."""
        e = self._e
        found: list[tuple[int, Value]] = []
        turned: list[tuple[int, Value]] = []  # of sixteen columns: of every four one
        for column, codes in format.codes(e, q, part):
            columns = list(format.columns(e, column))
            if columns == list(range(column, column + 4)):
                found.append((column, codes))
                continue
            assert columns == [column // 16 * 16 + 4 * j + column % 16 // 4 for j in range(4)]
            turned.append((column, codes))
            if len(turned) == 4:
                found += self._turned_back(turned)
                turned = []
        assert not turned
        return found

    def _turned_back(self, turned: list[tuple[int, Value]]) -> list[tuple[int, Value]]:
        e = self._e
        (first, a), (_, c), (_, d), (_, f) = sorted(turned, key=lambda each: each[0])
        low, high = e.pick_bytes(a, c, [0, 4, 1, 5]), e.pick_bytes(a, c, [2, 6, 3, 7])
        low_too, high_too = e.pick_bytes(d, f, [0, 4, 1, 5]), e.pick_bytes(d, f, [2, 6, 3, 7])
        rows = [
            e.pick_bytes(low, low_too, [0, 1, 4, 5]),
            e.pick_bytes(low, low_too, [2, 3, 6, 7]),
            e.pick_bytes(high, high_too, [0, 1, 4, 5]),
            e.pick_bytes(high, high_too, [2, 3, 6, 7]),
        ]
        return [(first + 4 * j, row) for j, row in enumerate(rows)]
