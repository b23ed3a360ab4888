"""What a model family of Hugging Face declares, for edgerun to convert it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_hybrids import Fold

Names = Mapping[str, tuple[str | tuple[str, ...], tuple[int, ...]]]
"""GGUF's tensors -> the checkpoint's modules, one or several of a kind that become one, and the shape of each."""


def _no_values(config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


def _no_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    return {}


@dataclass(frozen=True)
class Family:
    """How a family's checkpoint becomes GGUF.

    `layer` maps module names in a layer to GGUF names; every one must be there. `also` names what another GGUF
    tensor is made of, too. `embedding`: the embedding's module. `shapes`: of a layer's tensors in the checkpoint by
    GGUF's names, where they are not what other families have. `outside`: GGUF's tensors outside the layers that
    others do not have, with theirs. `mixers` maps those of layers of a kind, as config.json's `layer_types` calls
    it. `leading`: what says how many of the first layers have a feed-forward, and its modules; the others have
    those of `mixture` and the experts. `fed` are modules of models whose layers are fed beside
    (hidden_size_per_layer_input). `bare` are tensors that are no module's weight. `final_norm`: theirs and GGUF's
    name. `experts` maps the matrices of one expert, found under `experts_at`, to the stacked tensors. `requires`
    lists config values that the architecture implies: the first is its default, others are equal to it. `prepare`
    gives a config the names that others have, `values` GGUF keys beyond theirs; `folds` makes of a tensor of the
    checkpoint what GGUF keeps, by GGUF's name; `numbers`: tensors of every layer that it has as numbers of its
    config. `unread`: tensors that are not for text; `spare`: those that nothing is computed with.
    """

    architecture: str
    layer: Mapping[str, str]
    also: Mapping[str, str] = field(default_factory=dict)
    embedding: str = "embed_tokens"
    shapes: Callable[[Mapping[str, Any], int], Mapping[str, tuple[int, ...]]] = _no_shapes
    outside: Callable[[Mapping[str, Any]], Names] = _no_values
    mixers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    leading: tuple[str, Mapping[str, str]] = ("", {})
    mixture: Mapping[str, str] = field(default_factory=dict)
    fed: Mapping[str, str] = field(default_factory=dict)
    bare: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    spare: Callable[[Mapping[str, Any]], tuple[str, ...]] = _no_names
    fused_experts: bool = False  # gpt-oss's; see `hf_gpt_oss`
    quantised_as: str = ""  # what quantization_config may say
    final_norm: tuple[str, str] = ("norm", "output_norm")
    experts: Mapping[str, str] = field(default_factory=dict)
    experts_at: str = "mlp.experts"
    permute_qk: bool = False  # llama rotates neighbouring pairs in GGUF, halves in Hugging Face
    norm_plus_one: bool = False
    sliding_window: bool = False
    softcaps: bool = False
    tied_by_default: bool = False
    wide_scale_layers: int = 0  # a model of so many layers scales scores by d_model / heads, not by head_dim
    local_rope_base: float = 10000.0  # of layers with a sliding window, fixed in the architecture
    biases: bool = False
    sparse: bool = False  # may be a ReLU model, whose feed-forward is stored neuron by neuron
    defaults: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict
    values: Callable[[Mapping[str, Any]], dict[str, Any]] = _no_values
    folds: Mapping[str, Fold] = field(default_factory=dict)
    numbers: Callable[[Mapping[str, Any]], Mapping[str, NDArray[np.float32]]] = _no_values
