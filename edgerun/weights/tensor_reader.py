"""From tensors in files to matrices in the kernels' layout, piece by piece, on the threads that read them."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ReadError
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.formats.quants import dequantize
from edgerun.kernels.interface import F32, U8, Kernels, Matrix
from edgerun.weights.flash import DEMAND, PIECE_BYTES, FlashReader, Piece


class TensorReader:
    """A model's tensors through a `FlashReader`. Thread-safe but for `embedding_rows`."""

    def __init__(self, gguf: GgufFile, kernels: Kernels, flash: FlashReader) -> None:
        self.flash = flash
        self.kernels = kernels
        self._file = {path: index for index, path in enumerate(gguf.paths)}

    def pieces(
        self,
        info: TensorInfo,
        first: int,
        target: Matrix,
        done: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> list[Piece]:
        """What must be read to fill `target` with rows first .. first + target.rows - 1 of a tensor, seen as
        (all leading dimensions, cols). `done` (with its bytes) or `failed` is called once for each piece, on a
        reader's thread."""
        row_bytes, group = info.row_bytes, self.kernels.row_group
        step = max(1, PIECE_BYTES // row_bytes // group) * group
        if group * row_bytes > PIECE_BYTES:
            raise ReadError(f"{info.name}: rows of {row_bytes} bytes are longer than can be read at once")
        file, pieces = self._file[info.path], []
        for low in range(0, target.rows, step):
            rows = min(step, target.rows - low)

            def deliver(view: U8, low: int = low, rows: int = rows) -> None:
                self.kernels.pack_rows(view.reshape(rows, row_bytes), target, low)
                done(view.size)

            offset = info.offset + (first + low) * row_bytes
            pieces.append(Piece(file, offset, rows * row_bytes, info.name, deliver, failed))
        return pieces

    def vector(self, info: TensorInfo) -> F32:
        """A whole small tensor, dequantised, (n,) f32."""
        raw = self.flash.read_now(self._file[info.path], info.offset, info.n_bytes, info.name)
        return np.ascontiguousarray(dequantize(raw, info.type).reshape(-1))

    def rows(self, info: TensorInfo, ids: NDArray[np.int32]) -> F32:
        """Rows of a matrix, dequantised: (n, cols) f32. Neighbours are read together."""
        wanted, place = np.unique(ids, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        raw = np.empty((len(wanted), info.row_bytes), np.uint8)
        at = 0
        for run in runs:
            offset, size = info.offset + int(run[0]) * info.row_bytes, len(run) * info.row_bytes
            part = self.flash.read_now(self._file[info.path], offset, size, info.name)
            raw[at : at + len(run)] = part.reshape(len(run), info.row_bytes)
            at += len(run)
        return np.ascontiguousarray(dequantize(raw[place], info.type))

    def load(self, wanted: list[tuple[TensorInfo, Matrix]], progress: Callable[[int], None]) -> None:
        """Fill matrices and wait for it. `progress` gets the bytes of each piece. Raises what reading raised."""
        landed: SimpleQueue[int | Exception] = SimpleQueue()
        pieces: list[Piece] = []
        for info, target in wanted:
            pieces += self.pieces(info, 0, target, landed.put, landed.put)
        self.flash.submit(pieces, DEMAND)
        for _ in pieces:
            result = landed.get()
            if isinstance(result, Exception):
                self.flash.cancel(pieces)
                raise result
            progress(result)
