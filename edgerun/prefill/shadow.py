"""What a narrow grid cut off, computed on the CPU: (x - clip(x))[:, cols] @ W[cols, :] (mllm-NPU's shadow execution).

The columns are those in which anything was cut off in this chunk, so nothing is lost whatever the text. Weights of the
channels that were expected to go beyond are kept in f32; those of others are the backend's own narrow ones, read from
the layer's file, where a column of the product's input lies in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ReadError
from edgerun.formats.file_bytes import FileBytes
from edgerun.kernels.interface import F32
from edgerun.prefill.graphs import Range, Stored


@dataclass(frozen=True, eq=False)
class ShadowWeights:
    """A part of a product in the layer's file: int8 or packed int4 (cols, rows), with its scales."""

    file: FileBytes
    integers: Stored  # (cols, rows)
    scale: F32  # (rows,) or (blocks, rows)
    exact: Stored  # (outliers, rows) f32
    outliers: NDArray[np.intp]  # ascending

    def columns(self, cols: NDArray[np.intp]) -> F32:
        """(n, rows) f32 of ascending columns."""
        known = np.isin(cols, self.outliers)
        rows = self.exact.shape[1]
        out = np.empty((len(cols), rows), np.float32)
        places = np.searchsorted(self.outliers, cols[known])
        out[known] = self.file.gather(self.exact.offset, 4 * rows, places).view(np.float32)
        if not known.all():
            out[~known] = self._narrow(cols[~known])
        return out

    def _narrow(self, cols: NDArray[np.intp]) -> F32:
        n_cols = self.integers.shape[0]
        raw = self.file.gather(self.integers.offset, self.integers.n_bytes // n_cols, cols)
        if self.integers.type == "INT4":
            low, high = raw << 4, raw & 0xF0
            pairs = np.stack((low, high), axis=-1).reshape(len(cols), -1).view(np.int8) >> 4
            values = pairs.astype(np.float32)
        else:
            values = raw.view(np.int8).astype(np.float32)
        if self.scale.ndim == 1:
            return values * self.scale
        return values * self.scale[cols // (n_cols // len(self.scale))]


def find_shadow(file: FileBytes, stored: Mapping[str, Stored], key: str, outliers: Sequence[int]) -> ShadowWeights:
    """Of "PRODUCT.OUT", in the layer's file. ReadError when that is shorter than it must be."""
    weights, scale, exact = (stored[key + part] for part in ("", ".scale", ".exact"))
    if file.size < max(each.offset + each.n_bytes for each in (weights, scale, exact)):
        raise ReadError(f"{file.path} is shorter than its graphs say; delete its folder, and it is made again")
    scales = file.read_array(scale.offset, scale.n_bytes).view(np.float32).reshape(scale.shape)
    return ShadowWeights(file, weights, scales, exact, np.array(outliers, np.intp))


def excess(x: F32, kept: Range) -> tuple[NDArray[np.intp], F32] | None:
    """Of a product's input (tokens, cols): the columns that go beyond the grid, and by how much (tokens, n)."""
    beyond = x - np.clip(x, np.float32(kept[0]), np.float32(kept[1]))
    cols = np.flatnonzero(beyond.any(axis=0))
    return (cols, np.ascontiguousarray(beyond[:, cols])) if len(cols) else None
