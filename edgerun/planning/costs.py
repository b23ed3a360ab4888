"""What every operation of a pass costs, from the header alone: floating-point operations, and bytes by tier.

A pass computes some rows of one sequence: a token, or up to 256 tokens of a prompt, that stand after `position` others.
Each layer's weights are read from memory once a pass, the keys and values of what the rows see once a pass too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgerun.formats.gguf import GgmlType, TensorInfo
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv import KvLayer, KvOptions, layer_groups
from edgerun.models import ModelSpec
from edgerun.models.plan import plan_of
from edgerun.planning.memory import Sizes
from edgerun.weights.catalog import Catalog

Kind = Literal["product", "attention"]


@dataclass(frozen=True)
class Operation:
    """One operation of one pass. layer None: the logits.

    flops: multiplications and additions; memory_bytes: what is read of it from memory, packed weights or keys and
    values; stored_bytes: what the same weights are in the file; times: how many of its matrices a row is multiplied
    with (so many experts); touched: how many of them some row needs.
    """

    layer: int | None
    name: str
    kind: Kind
    flops: float
    memory_bytes: float
    stored_bytes: float = 0.0
    type: GgmlType | None = None
    cols: int = 0
    times: float = 1.0
    touched: float = 1.0

    @property
    def intensity(self) -> float:
        """Operations a byte: where it stands on a roofline."""
        return self.flops / max(1.0, self.memory_bytes)


def pass_operations(
    catalog: Catalog,
    spec: ModelSpec,
    sizes: Sizes,
    *,
    rows: int = 1,
    position: int = 0,
    logits_rows: int = 1,
    kv: KvOptions | None = None,
) -> Iterator[Operation]:
    """Of a pass of `rows` rows, layer by layer, the logits last. Norms, rotations and the like are not among them: they
    are counted as time that products take longer in a model than alone (`speed`)."""

    def product(
        layer: int | None, name: str, info: TensorInfo, matrix_rows: int, times: float, touched: float, many: int
    ) -> Operation:
        cols = info.shape[-1]
        stored = info.n_bytes * touched * matrix_rows * cols / max(1, _elements(info))
        return Operation(
            layer,
            name,
            "product",
            2.0 * many * matrix_rows * cols * times,
            touched * sizes.packed_bytes(info.type, matrix_rows, cols),
            stored,
            info.type,
            cols,
            times,
            touched,
        )

    for info in catalog.outer_matrices[1:]:
        yield product(None, "layer inputs", info, info.shape[0], 1.0, 1.0, rows)
    for number, (layer, planned) in enumerate(zip(catalog.layers, plan_of(spec), strict=True)):
        for part, info in layer.matrices.items():
            yield product(number, part, info, info.shape[0], 1.0, 1.0, rows)
        for part, info in layer.neurons.items():
            times = planned.tensors[part].times
            yield product(number, part, info, info.shape[0], times, times, rows)
        for part, info in layer.experts.items():
            times, experts = planned.tensors[part].times, info.shape[0]
            touched = experts * (1 - (1 - times / experts) ** rows)
            yield product(number, part, info, info.shape[1], times, touched, rows)
        attention = getattr(planned.mixer, "keys_and_values", getattr(planned.mixer, "kv", None))
        if isinstance(attention, KvLayer):
            (group,) = layer_groups([attention], kv)
            position_bytes = group.page_bytes / KEYS_PER_PAGE
            yield _attention(number, spec.layers[number].n_heads, attention, rows, position, position_bytes)
    yield product(None, "logits", catalog.head, catalog.head.shape[0], 1.0, 1.0, logits_rows)


def _attention(layer: int, heads: int, kv: KvLayer, rows: int, position: int, position_bytes: float) -> Operation:
    """Of rows that see what stands before them, within the layer's window."""
    window = kv.window or position + rows
    seen = sum(min(window, position + row + 1) for row in range(rows))
    flops = 2.0 * seen * heads * (kv.head_dim + kv.head_dim_v)
    return Operation(layer, "attention", "attention", flops, min(window + rows, position + rows) * position_bytes)


def _elements(info: TensorInfo) -> int:
    count = 1
    for length in info.shape:
        count *= length
    return count
