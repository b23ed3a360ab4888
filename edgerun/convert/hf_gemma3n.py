"""Checkpoints of Gemma 3n: a residual of several streams (AltUp), of which layers compute with one.

Source: llama.cpp's converter (conversion/gemma.py), for names, numbers and folds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from edgerun.convert.hf_family import Names
from edgerun.convert.hf_gemma4 import layer_kinds
from edgerun.convert.hf_numbers import count_of, real_of, whole_of
from edgerun.errors import FormatError

_RANK = 64  # of the narrow way around attention; GGUF has no key for it


def prepare_gemma3n(config: dict[str, Any]) -> dict[str, Any]:
    """A layer's kind as Gemma 4 has it; widths of layers beside the one that others have."""
    made = {**config, "layer_types": layer_kinds(config)}
    widths = config.get("intermediate_size")
    if isinstance(widths, list):
        if len(widths) != whole_of(config, "num_hidden_layers") or not all(type(n) is int for n in widths):
            raise FormatError("config.json: intermediate_size is not one number, nor one of each layer")
        made |= {"intermediate_size": widths[0], "intermediate_sizes": widths}
    return made


def gemma3n_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of windows, streams, and gates of which only the largest are let through."""
    kinds, rope = config["layer_types"], config.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {}
    base = real_of(local, "rope_theta", real_of(config, "rope_local_base_freq", 10000.0))
    values: dict[str, Any] = {
        "attention.sliding_window_pattern": np.array([kind.startswith("sliding") for kind in kinds]),
        "attention.shared_kv_layers": count_of(config, "num_kv_shared_layers"),
        "rope.freq_base_swa": base,
        "embedding_length_per_layer_input": whole_of(config, "hidden_size_per_layer_input"),
        "altup.num_inputs": whole_of(config, "altup_num_inputs"),
        "altup.active_idx": 0,
        "activation_sparsity_scale": np.array(_deviations(config), np.float32),
    }
    if len(set(config.get("intermediate_sizes", ()))) > 1:
        values["feed_forward_length"] = config["intermediate_sizes"]
    if config.get("final_logit_softcapping"):
        values["final_logit_softcapping"] = real_of(config, "final_logit_softcapping", 0.0)
    return values


def gemma3n_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """Of a layer's tensors in the checkpoint, by GGUF's names, where they are not as usual."""
    d, n = whole_of(config, "hidden_size"), whole_of(config, "altup_num_inputs")
    fed = whole_of(config, "hidden_size_per_layer_input")
    width = config.get("intermediate_sizes", [config["intermediate_size"]] * (layer + 1))[layer]
    return {
        "ffn_gate": (width, d),
        "ffn_up": (width, d),
        "ffn_down": (d, width),
        "altup_router": (n, d),
        "altup_predict_coef": (n * n, n),
        "altup_correct_coef": (n, n),
        "laurel_l": (_RANK, d),
        "laurel_r": (d, _RANK),
        "inp_gate": (fed, d),
        "proj": (d, fed),
    }


def gemma3n_outside(config: Mapping[str, Any]) -> Names:
    """Of what every layer is fed beside, and of the streams."""
    d, n = whole_of(config, "hidden_size"), whole_of(config, "altup_num_inputs")
    fed = whole_of(config, "hidden_size_per_layer_input")
    cols = fed * whole_of(config, "num_hidden_layers")
    rows = config.get("vocab_size_per_layer_input", whole_of(config, "vocab_size"))
    streams = range(n - 1)
    return {
        "per_layer_token_embd.weight": ("embed_tokens_per_layer.weight", (rows, cols)),
        "per_layer_model_proj.weight": ("per_layer_model_projection.weight", (cols, d)),
        "per_layer_proj_norm.weight": ("per_layer_projection_norm.weight", (fed,)),
        "altup_proj.weight": (tuple(f"altup_projections.{i}.weight" for i in streams), (d, d)),
        "altup_unembd_proj.weight": (tuple(f"altup_unembed_projections.{i}.weight" for i in streams), (d, d)),
    }


def _deviations(config: Mapping[str, Any]) -> list[float]:
    """Of each layer's gates: how many deviations above their mean those begin that are let through. Config.json says
    which share is not."""
    n_layers = whole_of(config, "num_hidden_layers")
    shares = config.get("activation_sparsity_pattern")
    shares = [shares] * n_layers if isinstance(shares, int | float) else shares
    if not isinstance(shares, list) or len(shares) != n_layers:
        raise FormatError(f"config.json: activation_sparsity_pattern does not say a share of each of {n_layers} layers")
    if not all(isinstance(share, int | float) and 0 <= share < 1 for share in shares):
        raise FormatError("config.json: activation_sparsity_pattern holds what is no share from 0 to below 1")
    return [NormalDist().inv_cdf(share) if share else -math.inf for share in shares]
