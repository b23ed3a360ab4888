"""From tensors in files to matrices in the kernels' layout, piece by piece, on the threads that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ReadError
from edgerun.events import EventSink, Progress
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.formats.packfile import PackHeader
from edgerun.formats.quants import dequantize
from edgerun.kernels.interface import F32, I32, U8, Kernels, Matrix
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import BlockLayout
from edgerun.weights.catalog import Catalog, LayerTensors
from edgerun.weights.flash import DEMAND, PIECE_BYTES, FlashReader, Landed, Piece, Reading
from edgerun.weights.store import LayerWeights
from edgerun.weights.weight_file import ALIGNMENT

# The three matrices of a small expert are handed to one thread in one piece: each piece costs Python a tenth of a
# millisecond, on cores that compute. More together would keep whoever waits for the first of several experts waiting.
JOINED_BYTES = 2 << 20
GAP_BYTES = 32 << 10  # between rows that are read together: skipping less costs a disk more than reading it


class TensorReader:
    """A model's tensors through a `FlashReader`. Thread-safe but for `embedding_rows`."""

    def __init__(self, gguf: GgufFile, kernels: Kernels, flash: FlashReader, pack: PackHeader | None = None) -> None:
        self.flash = flash
        self.kernels = kernels
        self._file = {path: index for index, path in enumerate(gguf.paths)}
        self._pack = pack  # of the flash reader's last file

    @property
    def packed(self) -> bool:
        """Whether blocks come from a pack file."""
        return self._pack is not None

    def block_pieces(
        self,
        layout: BlockLayout,
        block: int,
        index: int,
        memory: U8,
        matrices: Sequence[Matrix],
        landed: Landed,
    ) -> list[Piece]:
        """What must be read to fill a block in `memory`: of the pack file, where it is number `block`, or else of
        the tensors, of which it is expert `index` (0 for a layer). `landed`: as of `Piece`."""
        if self._pack is None:
            pieces = []
            for part, matrix in zip(layout.parts, matrices, strict=True):
                pieces += self.pieces(part.info, part.first_row(index), matrix, landed)
            return joined(pieces)
        start, what = self._pack.offset(block), f"block {block} of the pack file"
        used = -(-layout.n_bytes // ALIGNMENT) * ALIGNMENT
        return [
            Piece(
                len(self._file),
                start + low,
                min(PIECE_BYTES, used - low),
                what,
                _stays,
                landed,
                memory[low : min(used, low + PIECE_BYTES)],
            )
            for low in range(0, used, PIECE_BYTES)
        ]

    def pieces(
        self,
        info: TensorInfo,
        first: int,
        target: Matrix,
        landed: Landed,
    ) -> list[Piece]:
        """What must be read to fill `target` with rows first .. first + target.rows - 1 of a tensor, seen as
        (all leading dimensions, cols). `landed`: as of `Piece`."""
        row_bytes, group = info.row_bytes, self.kernels.row_group
        inside = first >= 0 and (first + target.rows) * row_bytes <= info.n_bytes
        if not inside or (target.type, target.cols) != (info.type, info.shape[-1]):
            raise ReadError(f"{info.name} {info.shape} has no rows {first} to {first + target.rows} of {target.cols}")
        step = max(1, PIECE_BYTES // row_bytes // group) * group
        if group * row_bytes > PIECE_BYTES:
            raise ReadError(f"{info.name}: rows of {row_bytes} bytes are longer than can be read at once")
        file, pieces = self._file[info.path], []
        for low in range(0, target.rows, step):
            rows = min(step, target.rows - low)

            def deliver(view: U8, low: int = low, rows: int = rows) -> None:
                self.kernels.pack_rows(view.reshape(rows, row_bytes), target, low)

            offset = info.offset + (first + low) * row_bytes
            pieces.append(Piece(file, offset, rows * row_bytes, info.name, deliver, landed))
        return pieces

    def neuron_pieces(
        self,
        layout: BlockLayout,
        block: int,
        ids: I32,
        slots: I32,
        memory: U8,
        landed: Landed,
    ) -> list[Piece]:
        """What must be read to fill rows `slots` of `memory` (rows, neuron bytes) with the neurons `ids` (ascending) of
        a layer: neighbours, and what lies closer than `GAP_BYTES`, in one read. `landed`: as of `Piece`."""
        if self._pack is not None:
            base = self._pack.offset(block) + layout.neurons_offset
            sources = [(len(self._file), base, memory.shape[1], f"neurons of block {block} of the pack file")]
        else:
            sources = [(self._file[info.path], info.offset, info.row_bytes, info.name) for info in layout.neurons]
        pieces, column = [], 0
        for file, base, width, what in sources:
            target = memory[:, column : column + width]
            column += width
            for low, high in _runs(ids, width):
                first, here = int(ids[low]), ids[low:high] - ids[low]

                def deliver(view: U8, low: int = low, high: int = high, here: I32 = here, target: U8 = target) -> None:
                    target[slots[low:high]] = view.reshape(-1, target.shape[1])[here]

                n_bytes = (int(here[-1]) + 1) * width
                pieces.append(Piece(file, base + first * width, n_bytes, what, deliver, landed))
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


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same ranges in fewer pieces: small neighbours of the list become one of up to `JOINED_BYTES`."""
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].all_bytes + piece.n_bytes <= JOINED_BYTES:
            found[-1] = replace(found[-1], also=(*found[-1].also, piece))
        else:
            found.append(piece)
    return found


def _stays(view: U8) -> None:
    """What was read to its own place is where it belongs."""


def _runs(ids: I32, width: int) -> list[tuple[int, int]]:
    """Ascending ids of rows of `width` bytes -> (low, high) of each stretch of `ids` that is read at once."""
    far = np.flatnonzero(np.diff(ids) > 1 + GAP_BYTES // width) + 1
    runs, most = [], max(1, PIECE_BYTES // width)
    for low, high in pairwise([0, *far.tolist(), len(ids)]):
        while low < high:
            end = low + int(np.searchsorted(ids[low:high], ids[low] + most))
            runs.append((low, end))
            low = end
    return runs


class DenseLoader:
    """Brings in what stays: names are asked for first, `run` reads them all in the order of the files."""

    def __init__(self, reader: TensorReader, catalog: Catalog) -> None:
        self._reader = reader
        self._catalog = catalog
        self._wanted: list[tuple[TensorInfo, Matrix]] = []

    def outside(self) -> dict[str, F32]:
        """The vectors outside the layers."""
        return {name: self._reader.vector(info) for name, info in self._catalog.outside.items()}

    def head(self) -> Matrix:
        """Filled by `run`."""
        return self._matrix(self._catalog.head)

    def outer(self) -> dict[str, Matrix]:
        """As `head`: all other matrices outside the layers, by their whole names."""
        return {name: self._matrix(info) for name, info in self._catalog.multiplied_outside.items()}

    def layer(self, layer: LayerTensors, *, matrices: bool = True) -> LayerWeights:
        """A layer's vectors, and its matrices, which `run` fills."""
        weights = LayerWeights(vectors={part: self._reader.vector(info) for part, info in layer.vectors.items()})
        if matrices:
            weights.matrices.update((part, self._matrix(info)) for part, info in layer.matrices.items())
        return weights

    def run(self, events: EventSink) -> None:
        """Fill all matrices and wait for it. Raises what reading raised."""
        self._wanted.sort(key=lambda pair: (pair[0].part, pair[0].offset))
        reading = Reading(self._reader.flash)
        pieces: list[Piece] = []
        for info, target in self._wanted:
            pieces += self._reader.pieces(info, 0, target, reading.landed)
        total, done = sum(piece.n_bytes for piece in pieces), 0
        reading.begin(pieces, DEMAND)
        for piece in reading.each():
            done += piece.n_bytes
            events(Progress("load weights", done, total, "bytes"))
        self._wanted.clear()

    def _matrix(self, info: TensorInfo) -> Matrix:
        kernels, (rows, cols) = self._reader.kernels, info.shape
        n_bytes = kernels.packed_bytes(info.type, rows, cols)
        matrix = kernels.matrix_in(Arena(n_bytes, large_pages=True).bytes[:n_bytes], info.type, rows, cols)
        self._wanted.append((info, matrix))
        return matrix
