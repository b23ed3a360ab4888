"""AMX (Sapphire Rapids and later): registers of 16 rows of 64 bytes, and one instruction for the products of two.

A tile of weights is what a packed field of words is: a row holds four columns of each of 16 rows of weights. A tile of
activations is 16 rows of them as they lie, 64 columns or fewer. Their product, 16 rows of activations by 16 of weights
in i32, is added to a third tile, exactly. Codes go in as bytes that nothing has been added to.

`ldtilecfg` sets the shapes and must have come first, in every thread; `tilerelease` ends it, so that the system need
not save 8 KiB when it takes the processor away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.ops.emitter import Value
from edgerun.kernels.ops.vbmi import Avx512Vbmi
from edgerun.kernels.simd import I8, I64

ROWS, ROW_BYTES = 16, 64  # of a tile, at most
TILE_BYTES = ROWS * ROW_BYTES
CONFIG_BYTES = 64
SHAPES_AT, ROWS_AT = 16, 48  # of a configuration: bytes of a row (u16 each), rows (u8 each)


class Tiles(Avx512Vbmi):
    """Emits tile instructions, and codes as they take them: signed bytes where a format's codes are signed."""

    signed_start = False

    def signed_codes(self, w: Value) -> Any:
        return w

    def table_codes(self, codes: Value, values: Sequence[int]) -> Any:
        return self.table(codes, values)

    def with_signs(self, weights: Value, negative: Value) -> Any:
        return self.signed(weights, negative)

    def configure(self, address: Value) -> None:
        """Take the shapes from a configuration."""
        self._call("ldtilecfg", self._pointer(address))

    def release(self) -> None:
        """Be done with tiles."""
        self._call("tilerelease")

    def load_tile(self, tile: int, address: Value, stride: Value) -> None:
        """Rows `stride` bytes apart."""
        self._call("tileloadd64", ir.Constant(I8, tile), self._pointer(address), stride)

    def store_tile(self, tile: int, address: Value) -> None:
        """Rows side by side."""
        self._call("tilestored64", ir.Constant(I8, tile), self._pointer(address), ir.Constant(I64, ROW_BYTES))

    def clear_tile(self, tile: int) -> None:
        """All zeros."""
        self._call("tilezero", ir.Constant(I8, tile))

    def multiply_tiles(self, total: int, x: int, w: int, signed: bool) -> None:
        """Add to a tile the products of one of activations with one of weights, signed or not."""
        kinds = (ir.Constant(I8, each) for each in (total, x, w))
        self._call("tdpbssd" if signed else "tdpbsud", *kinds)

    def multiply_float_tiles(self, total: int, x: int, w: int) -> None:
        """The same in bf16: of 32 columns the even and the odd ones are a chain of fused multiply-adds each, from zero
        on, whose sum is added to the total; all in f32, subnormal numbers taken as zero."""
        self._call("tdpbf16ps", *(ir.Constant(I8, each) for each in (total, x, w)))

    def store(self, address: Value, offset: int, value: Value) -> None:
        """A vector at a multiple of 64 bytes."""
        at = self.b.add(address, ir.Constant(I64, offset))
        self.b.store(value, self.b.inttoptr(at, value.type.as_pointer())).align = 64

    def _pointer(self, address: Value) -> Value:
        return self.b.inttoptr(address, I8.as_pointer())

    def _call(self, name: str, *values: Value) -> None:
        kinds = [value.type for value in values]
        self.b.call(simd.declare(self.b, f"llvm.x86.{name}", ir.VoidType(), kinds), values)
