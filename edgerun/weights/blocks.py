"""How an expert lies in a slot and a layer in a buffer: the same in memory and in a pack file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgerun.formats.gguf import TensorInfo
from edgerun.kernels.interface import Kernels
from edgerun.weights.catalog import NEURON_PARTS, Catalog, TensorRows

_ALIGNMENT = 64
_SYSTEM_PAGE = 4096


@dataclass(frozen=True)
class BlockPart:
    """A matrix in a block: rows of a tensor (of an expert's, where there are several) at an offset, packed."""

    info: TensorInfo
    first: int
    rows: int
    offset: int
    n_bytes: int

    @property
    def cols(self) -> int:
        """Of the matrix."""
        return self.info.shape[-1]

    def first_row(self, index: int) -> int:
        """Of expert `index` (0 for a layer), counted through the whole tensor."""
        return index * self.info.shape[-2] + self.first


@dataclass(frozen=True)
class BlockLayout:
    """The matrices of a block. Layers whose blocks are alike share a `number`; `block`: the layer's first in a pack
    file. A layer without experts has none beside those that have some."""

    parts: tuple[BlockPart, ...]
    n_bytes: int
    number: int
    block: int
    neurons: tuple[TensorInfo, ...] = ()  # up and transposed down, which a pack file holds row by row after the parts

    @property
    def neurons_offset(self) -> int:
        """Of the first neuron in a pack file's block."""
        return _paged(self.n_bytes)

    @property
    def stored_bytes(self) -> int:
        """Of a pack file's block: the parts, then every neuron's two rows."""
        return self.neurons_offset + sum(info.row_bytes for info in self.neurons) * self.n_neurons

    @property
    def n_neurons(self) -> int:
        """How many; 0: none."""
        return self.neurons[0].shape[0] if self.neurons else 0


def slot_blocks(catalog: Catalog, kernels: Kernels) -> list[BlockLayout]:
    """Of one expert of every layer: gate, if it has one, up, down."""
    counts = [catalog.n_experts if layer.experts else 0 for layer in catalog.layers]
    return _blocks([layer.expert_rows for layer in catalog.layers], kernels, counts)


def layer_blocks(catalog: Catalog, kernels: Kernels) -> list[BlockLayout]:
    """Of the matrices of every layer."""
    whole = [[TensorRows(info, 0, info.shape[0]) for info in layer.matrices.values()] for layer in catalog.layers]
    layouts = _blocks(whole, kernels, [1] * len(whole))
    neurons = [tuple(layer.neurons[part] for part in NEURON_PARTS if layer.neurons) for layer in catalog.layers]
    return [replace(layout, neurons=each) for layout, each in zip(layouts, neurons, strict=True)]


def block_bytes(layouts: list[BlockLayout]) -> int:
    """Of the largest in memory, in whole pages."""
    return _paged(max((layout.n_bytes for layout in layouts), default=1))


def stored_block_bytes(layouts: list[BlockLayout]) -> int:
    """Of the largest in a pack file, in whole pages."""
    return _paged(max((layout.stored_bytes for layout in layouts), default=1))


def _paged(n_bytes: int) -> int:
    return -(-n_bytes // _SYSTEM_PAGE) * _SYSTEM_PAGE


def _blocks(layers: Sequence[Sequence[TensorRows]], kernels: Kernels, counts: Sequence[int]) -> list[BlockLayout]:
    """counts: of each layer, how many blocks."""
    numbers: dict[tuple[object, ...], int] = {}
    layouts, block = [], 0
    for matrices, count in zip(layers, counts, strict=True):
        parts, offset = [], 0
        for rows in matrices:
            size = kernels.packed_bytes(rows.info.type, rows.rows, rows.info.shape[-1])
            parts.append(BlockPart(rows.info, rows.first, rows.rows, offset, size))
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        kind = tuple((rows.info.type, rows.first, rows.rows, rows.info.shape) for rows in matrices)
        layouts.append(BlockLayout(tuple(parts), offset, numbers.setdefault(kind, len(numbers)), block))
        block += count
    return layouts
