"""A real model file with outliers in its activations that computes what it did before.

A channel is made larger where it is written and its weights smaller where it is read: norm weights and the columns of
what follows them, rows of `ffn_up` and columns of `ffn_down`, rows of `attn_v` and columns of `attn_output`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.formats.gguf import GgmlType, GgufWriter
from tests.models.instances import Instance, write, writing

WIDE = Instance("planted", "llama", d=256, ff=512, heads=4, head_dim=64)
CHANNEL, NEURON, VALUE = 37, 101, 5  # of d, ff and of the first key-value head
KINDS = {"norms": ("qkv", "gate_up"), "neurons": ("down",), "values": ("o",)}  # and the products that see them


def write_planted(path: Path, kinds: tuple[str, ...], factor: float, instance: Instance = WIDE) -> Path:
    """`instance`, whose weights are F32, with outliers of the given kinds."""

    class Planter(GgufWriter):
        def add_tensor(self, name: str, data: Any, type: GgmlType, shape: Any = None) -> None:
            super().add_tensor(name, planted(name, data.copy(), kinds, factor, instance), type, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GgufWriter", Planter)
        return write(instance, path)


def planted(name: str, data: np.ndarray, kinds: tuple[str, ...], factor: float, i: Instance) -> np.ndarray:
    """One tensor, (rows, cols) or (n,); of one column: what only tells that it is there."""
    if not name.startswith("blk.") or data.shape[-1] == 1:
        return data
    part = name.split(".")[2]
    if "norms" in kinds:
        if part in ("attn_norm", "ffn_norm"):
            data[CHANNEL] *= factor
        if part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            data[:, CHANNEL] /= factor
    if "neurons" in kinds:
        if part == "ffn_up":
            data[NEURON] *= factor
        if part == "ffn_down":
            data[:, NEURON] /= factor
    if "values" in kinds:
        if part == "attn_v":
            data[VALUE] *= factor
        if part == "attn_output":  # every query head that looks at the first key-value head
            data[:, [VALUE + head * i.head_dim for head in range(i.heads // i.kv_heads)]] /= factor
    return data
