"""Weights from GGUF rows into the layout that the products read."""

from __future__ import annotations

from math import prod

import numpy as np

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import layout
from edgerun.kernels.abi import Pack
from edgerun.kernels.interface import I32, U8, Matrix
from edgerun.kernels.kernel_names import MATRIX_KERNELS
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, memory_at_line
from edgerun.kernels.reference import ReferenceKernels


class Packer:
    """Matrices of `lanes` interleaved rows; types without kernels of their own stay as they are in the file. What the
    methods do, `interface.Kernels` says."""

    def __init__(self, launcher: Launcher, lanes: int) -> None:
        self.lanes = lanes
        self.layout_name = layout.layout_name(lanes)
        self._sizes = layout.PackedSizes(lanes)
        self._launcher = launcher
        self._plain = ReferenceKernels()

    def pack(self, raw: U8, type: GgmlType, cols: int, memory: U8 | None = None) -> Matrix:
        if type not in MATRIX_KERNELS:
            return self._plain.pack(raw, type, cols, memory)
        if raw.ndim != 2 or raw.shape[1] != type.row_bytes(cols) or raw.dtype != np.uint8:
            raise UsageError(f"{raw.shape} {raw.dtype} are not {type.name} rows of {cols} weights")
        rows, blocks = raw.shape[0], cols // type.block_size
        groups = -(-rows // self.lanes)
        shape = (groups, blocks, type.block_bytes * self.lanes)
        out = (memory_at_line(prod(shape)) if memory is None else memory).reshape(shape)
        raw = np.ascontiguousarray(raw)
        arguments = Pack(address(raw), raw.shape[1], rows, address(out), blocks)
        self._launcher.launch(MATRIX_KERNELS[type].pack, arguments, groups, max(1, 64 // self.lanes))
        return Matrix(rows, cols, type, self.layout_name, out)

    def pack_chosen(self, rows: U8, first_byte: int, chosen: I32, type: GgmlType, cols: int, memory: U8) -> Matrix:
        """Of `rows` (n, bytes) u8 those whose numbers are `chosen`, from a byte of each on, packed to memory
        (packed_bytes,). UsageError for numbers and bytes that are not there, and for a type without kernels."""
        end = first_byte + type.row_bytes(cols)
        inside = not len(chosen) or (chosen.min() >= 0 and chosen.max() < len(rows))
        if (
            not inside
            or not 0 <= first_byte < end <= rows.shape[1]
            or chosen.dtype != np.int32
            or not (rows.dtype == np.uint8 and rows.flags.c_contiguous and chosen.flags.c_contiguous)
        ):
            raise UsageError(f"{rows.shape} {rows.dtype} have not all {type.name} rows of {cols} weights to be packed")
        packed = Matrix(len(chosen), cols, type, self.layout_name, memory)
        blocks = cols // type.block_size
        arguments = Pack(
            address(rows) + first_byte, rows.shape[1], len(chosen), packed.address, blocks, address(chosen)
        )
        self._launcher.launch(MATRIX_KERNELS[type].pack, arguments, -(-len(chosen) // self.lanes), 1)
        return packed

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        return self._sizes.packed_bytes(type, rows, cols)

    def matrix_in(self, memory: U8, type: GgmlType, rows: int, cols: int) -> Matrix:
        if type not in MATRIX_KERNELS:
            return self._plain.matrix_in(memory, type, rows, cols)
        return Matrix(rows, cols, type, self.layout_name, memory)

    def pack_rows(self, raw: U8, w: Matrix, first_row: int) -> None:
        if w.layout == "gguf":
            self._plain.pack_rows(raw, w, first_row)
            return
        lanes, rows = self.lanes, raw.shape[0]
        ragged = rows % lanes and first_row + rows != w.rows
        whole = raw.dtype == np.uint8 and raw.shape == (rows, w.type.row_bytes(w.cols)) and w.layout == self.layout_name
        if first_row < 0 or first_row % lanes or ragged or first_row + rows > w.rows or not whole:
            raise UsageError(
                f"cannot pack {raw.shape} {raw.dtype} at row {first_row} of {w.rows} x {w.cols} {w.type.name}"
            )
        blocks = w.cols // w.type.block_size
        target = w.address + first_row // lanes * blocks * w.type.block_bytes * lanes
        raw = np.ascontiguousarray(raw)
        arguments = Pack(address(raw), raw.shape[1], rows, target, blocks)
        self._launcher.run_alone(MATRIX_KERNELS[w.type].pack, arguments, -(-rows // lanes))
