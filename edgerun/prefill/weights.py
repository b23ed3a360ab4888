"""A layer's weights as a prompt backend needs them: dequantised from the GGUF file, rotated where asked, narrowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.gguf import GgmlType, GgufFile
from edgerun.formats.quants import dequantize
from edgerun.kernels.interface import F32
from edgerun.models import ModelSpec
from edgerun.models.blocks.declared import Part, Product
from edgerun.prefill.hadamard import rotate
from edgerun.weights.catalog import tensor_name

I8 = NDArray[np.int8]

_ROWS_AT_ONCE = 256  # bounds the scratch memory of narrowing


@dataclass(frozen=True, eq=False)
class PartWeights:
    """One part of a product: (cols, rows) f32, a bias (rows,) and a factor. `q4_0`: the file's rows (rows, row_bytes),
    where they are of this type and not rotated."""

    matrix: F32
    bias: F32 | None
    scale: float
    q4_0: NDArray[np.uint8] | None = None


class LayerReader:
    """One layer's tensors. `rotated`: for a residual stream that goes through `hadamard.rotate`."""

    def __init__(self, gguf: GgufFile, spec: ModelSpec, layer: int, *, rotated: bool = False) -> None:
        self._gguf = gguf
        self._spec = spec
        self.layer = layer
        self._rotated = rotated

    def vector(self, name: str) -> F32 | None:
        """f32, or None where the file has none."""
        info = self._spec.tensors.get(tensor_name(self.layer, name))
        if info is None:
            return None
        return np.asarray(dequantize(self._gguf.raw(info.name), info.type), np.float32).reshape(-1)

    def norm(self, product: Product) -> F32 | None:
        """The weight of the norm before a product (cols,); None: no norm. Of a rotated stream it is all ones."""
        if not product.norm:
            return None
        weight = self.vector(product.norm)
        assert weight is not None  # shapes.check_tensors
        return np.ones_like(weight) if self._reads_stream(product) else weight

    def part(self, product: Product, part: Part, expert: int | None = None) -> PartWeights:
        """Dequantised and rotated; of an expert, whose weights are one of a tensor's three dimensions."""
        info = self._spec.tensors[tensor_name(self.layer, part.tensor)]
        first, rows = (part.first, part.rows) if expert is None else (expert * info.shape[1], info.shape[1])
        raw = self._gguf.rows(info.name, first, first + rows)
        matrix = np.asarray(dequantize(raw, info.type), np.float32)  # (rows, cols)
        bias = self.vector(part.tensor + ".bias")
        scale = self.vector(part.tensor + ".scale")
        if bias is not None:
            bias = bias[part.first : part.first + part.rows]
        if self._reads_stream(product):
            weight = self.vector(product.norm)
            assert weight is not None
            matrix = rotate(matrix * weight)
        elif self._rotated:
            matrix = rotate(matrix, axis=0)
            bias = None if bias is None else rotate(bias)
        same = raw if info.type == GgmlType.Q4_0 and not self._rotated else None
        return PartWeights(matrix.T, bias, 1.0 if scale is None else float(scale[0]), same)

    def _reads_stream(self, product: Product) -> bool:
        return self._rotated and product.name in ("qkv", "gate_up")


def narrow(matrix: F32, bits: int, block: int) -> tuple[I8, F32]:
    """(cols, rows) f32 -> integers of `bits` as int8 and their scales: (rows,), or (cols / block, rows) with a block.
    Symmetric; of 8 bits -127 to 127."""
    cols, rows = matrix.shape
    most = float((1 << (bits - 1)) - 1)
    groups = cols // block if block else 1
    integers, scale = np.empty((cols, rows), np.int8), np.empty((groups, rows), np.float32)
    for low in range(0, rows, _ROWS_AT_ONCE):
        some = slice(low, low + _ROWS_AT_ONCE)
        part = np.array(matrix[:, some], order="C").reshape(groups, cols // groups, -1)
        scale[:, some] = np.maximum(np.abs(part).max(axis=1) / most, np.float32(1e-12))
        part /= scale[:, None, some]
        integers[:, some] = np.clip(np.rint(part, out=part), -most, most, out=part).reshape(cols, -1)
    return integers, scale if block else scale[0]


def same_nibbles(raw: NDArray[np.uint8]) -> tuple[I8, F32]:
    """Q4_0 rows (rows, row_bytes) as int4 in blocks of 32: the very same numbers, (cols, rows), (cols / 32, rows)."""
    blocks = raw.reshape(len(raw), -1, 18)  # f16 scale, 16 bytes: weights 0-15 low, 16-31 high
    scale = blocks[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float32)
    nibbles = blocks[:, :, 2:]
    integers = np.concatenate((nibbles & 15, nibbles >> 4), axis=-1).astype(np.int8) - np.int8(8)
    return np.ascontiguousarray(integers.reshape(len(raw), -1).T), np.ascontiguousarray(scale.T)


def pack_nibbles(integers: I8) -> NDArray[np.uint8]:
    """ONNX's int4: two a byte, the first in the low half."""
    flat = integers.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)
