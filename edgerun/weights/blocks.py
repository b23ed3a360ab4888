"""How an expert lies in a slot and a layer in a buffer: the same in memory and in a pack file."""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.formats.gguf import TensorInfo
from edgerun.kernels.interface import Kernels
from edgerun.weights.catalog import EXPERT_PARTS, Catalog

_ALIGNMENT = 64
_PAGE = 4096


@dataclass(frozen=True)
class BlockLayout:
    """The matrices of a block: (tensor, offset, bytes) each. Layers whose blocks are alike share a `number`."""

    parts: tuple[tuple[TensorInfo, int, int], ...]
    n_bytes: int
    number: int


def slot_blocks(catalog: Catalog, kernels: Kernels) -> list[BlockLayout]:
    """Of one expert of every layer: gate, up, down."""
    return _blocks([[layer.experts[part] for part in EXPERT_PARTS] for layer in catalog.layers], kernels)


def layer_blocks(catalog: Catalog, kernels: Kernels) -> list[BlockLayout]:
    """Of the matrices of every layer."""
    return _blocks([list(layer.matrices.values()) for layer in catalog.layers], kernels)


def block_bytes(layouts: list[BlockLayout]) -> int:
    """Of the largest, in whole pages."""
    return -(-max((layout.n_bytes for layout in layouts), default=1) // _PAGE) * _PAGE


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
