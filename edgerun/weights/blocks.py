"""How an expert lies in a slot and a layer in a buffer: the same in memory and in a pack file."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgerun.formats.gguf import TensorInfo
from edgerun.kernels.interface import Kernels
from edgerun.weights.catalog import EXPERT_PARTS, NEURON_PARTS, Catalog

_ALIGNMENT = 64
_SYSTEM_PAGE = 4096


@dataclass(frozen=True)
class BlockLayout:
    """The matrices of a block: (tensor, offset, bytes) each. Layers whose blocks are alike share a `number`."""

    parts: tuple[tuple[TensorInfo, int, int], ...]
    n_bytes: int
    number: int
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
    """Of one expert of every layer: gate, up, down."""
    return _blocks([[layer.experts[part] for part in EXPERT_PARTS] for layer in catalog.layers], kernels)


def layer_blocks(catalog: Catalog, kernels: Kernels) -> list[BlockLayout]:
    """Of the matrices of every layer."""
    layouts = _blocks([list(layer.matrices.values()) for layer in catalog.layers], kernels)
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


def _blocks(layers: list[list[TensorInfo]], kernels: Kernels) -> list[BlockLayout]:
    numbers: dict[tuple[object, ...], int] = {}
    layouts = []
    for infos in layers:
        parts, offset = [], 0
        for info in infos:
            size = kernels.packed_bytes(info.type, *info.shape[-2:])
            parts.append((info, offset, size))
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        kind = tuple((info.type, info.shape) for info in infos)
        layouts.append(BlockLayout(tuple(parts), offset, numbers.setdefault(kind, len(numbers))))
    return layouts
