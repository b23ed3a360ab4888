"""What a narrow grid cut off, computed on the CPU: (x - clip(x))[:, cols] @ W[cols, :] (mllm-NPU's shadow execution).

The columns are those in which anything was cut off in this chunk, so nothing is lost whatever the text. Weights of the
channels that were expected to go beyond are kept in f32; those of others are the backend's own narrow ones, read from
the layer's mapped file, where a column of the product's input lies in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ReadError
from edgerun.kernels.interface import F32
from edgerun.prefill.graphs import Range, Stored


@dataclass(frozen=True, eq=False)
class ShadowWeights:
    """A part of a product in the layer's file: int8 or packed int4 (cols, rows), with its scales."""

    integers: NDArray[np.uint8]  # (cols, row bytes), mapped
    scale: F32  # (rows,) or (blocks, rows)
    nibbles: bool
    exact: F32  # (outliers, rows), mapped
    outliers: NDArray[np.intp]  # ascending

    def columns(self, cols: NDArray[np.intp]) -> F32:
        """(n, rows) f32 of ascending columns."""
        known = np.isin(cols, self.outliers)
        out = np.empty((len(cols), self.exact.shape[1]), np.float32)
        out[known] = self.exact[np.searchsorted(self.outliers, cols[known])]
        if not known.all():
            out[~known] = self._narrow(cols[~known])
        return out

    def _narrow(self, cols: NDArray[np.intp]) -> F32:
        raw = self.integers[cols]
        if self.nibbles:
            low, high = raw << 4, raw & 0xF0
            pairs = np.stack((low, high), axis=-1).reshape(len(cols), -1).view(np.int8) >> 4
            values = pairs.astype(np.float32)
        else:
            values = raw.view(np.int8).astype(np.float32)
        if self.scale.ndim == 1:
            return values * self.scale
        return values * self.scale[cols // (len(self.integers) // len(self.scale))]


def map_shadow(path: Path, stored: Mapping[str, Stored], key: str, outliers: Sequence[int]) -> ShadowWeights:
    """Of "PRODUCT.OUT". ReadError when the file is shorter than it must be."""
    weights, scale, exact = (stored[key + part] for part in ("", ".scale", ".exact"))
    if path.stat().st_size < max(each.offset + each.n_bytes for each in (weights, scale, exact)):
        raise ReadError(f"{path} is shorter than its graphs say; delete its folder, and it is made again")
    memory = np.memmap(path, np.uint8, mode="r")

    def floats(of: Stored) -> F32:
        return memory[of.offset : of.offset + of.n_bytes].view(np.float32).reshape(of.shape)

    integers = memory[weights.offset : weights.offset + weights.n_bytes].reshape(weights.shape[0], -1)
    channels = np.array(outliers, np.intp)
    return ShadowWeights(integers, np.array(floats(scale)), weights.type == "INT4", floats(exact), channels)


def excess(x: F32, kept: Range) -> tuple[NDArray[np.intp], F32] | None:
    """Of a product's input (tokens, cols): the columns that go beyond the grid, and by how much (tokens, n)."""
    beyond = x - np.clip(x, np.float32(kept[0]), np.float32(kept[1]))
    cols = np.flatnonzero(beyond.any(axis=0))
    return (cols, np.ascontiguousarray(beyond[:, cols])) if len(cols) else None
