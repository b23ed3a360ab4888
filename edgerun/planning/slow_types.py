"""Which of a file's weights are of types that have no kernels here: they are computed in numpy, right and slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Protocol

from edgerun.formats.gguf import GgmlType, TensorInfo

_WORTH_SAYING = 0.005  # of the weights


class Types(Protocol):
    """Of the kernels (`kernels.load_sizes`)."""

    def has_kernels(self, type: GgmlType) -> bool: ...


def slow_types(tensors: Mapping[str, TensorInfo], types: Types) -> dict[str, float]:
    """Type -> its share of the weights that are multiplied, for the types without kernels; the largest first.

    An embedding that is not the head too does not count: its rows are only looked up.
    """
    weights: Counter[GgmlType] = Counter()
    for name, info in tensors.items():
        if len(info.shape) > 1 and (name != "token_embd.weight" or "output.weight" not in tensors):
            weights[info.type] += prod(info.shape)
    total = sum(weights.values())
    return {type.name: count / total for type, count in weights.most_common() if not types.has_kernels(type)}


def slow_types_notice(tensors: Mapping[str, TensorInfo], types: Types) -> str:
    """A sentence for the user; empty when all that counts is fast."""
    slow = slow_types(tensors, types)
    if sum(slow.values()) < _WORTH_SAYING:
        return ""
    named = " and ".join(f"{name} ({100 * share:.0f} % of the weights)" for name, share in slow.items())
    verb = "has" if len(slow) == 1 else "have"
    return (
        f"{named} {verb} no kernels here: right, but some 10 to 100 times slower than other types; "
        "`edgerun quantize` makes a fast file of it"
    )
