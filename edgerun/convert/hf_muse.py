"""Checkpoints of Muse Glimmer: every head's output has a gate, layers without a window are not rotated, and queries and
keys are normed by no weights but a number, which GGUF keeps as those of their norms.

Source: llama.cpp's converter (conversion/muse_glimmer.py), for names, numbers and folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_hybrids import Fold, layer_types
from edgerun.convert.hf_numbers import real_of, whole_of
from edgerun.errors import UnsupportedError

F32 = NDArray[np.float32]


def muse_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of windows, and of the logits. UnsupportedError where the layers that are rotated are not those with a window."""
    kinds, bases = layer_types(config), config.get("layer_rope_theta")
    windowed = np.array([kind == "sliding_attention" for kind in kinds])
    rope = config.get("rope_parameters") or {}
    if isinstance(bases, list):
        base = real_of(rope, "rope_theta", 10000.0)
        if bases != [base if each else 0 for each in windowed.tolist()]:
            raise UnsupportedError(
                "config.json: layer_rope_theta is not rope_theta of the layers with a window and 0 of the others, as "
                "GGUF's muse-glimmer has it"
            )
    return {
        "attention.sliding_window_pattern": windowed,
        "rope.freq_base_swa": real_of(rope, "rope_theta", 10000.0),
        "logit_scale": real_of(config, "output_multiplier", 1.0),
        "final_logit_softcapping": real_of(config, "final_logit_softcapping", 20.0),
    }


def muse_shapes(config: Mapping[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    """Of what other families do not have."""
    width = whole_of(config, "num_attention_heads") * whole_of(config, "head_dim")
    return {"attn_gate": (width, whole_of(config, "hidden_size"))}


def muse_norms(config: Mapping[str, Any]) -> dict[str, F32]:
    """Of queries and of keys, in every layer (head_dim,)."""
    ones = np.ones(whole_of(config, "head_dim"), np.float32)
    return {
        "attn_q_norm.weight": ones * np.float32(real_of(config, "qk_scale_factor", 1.0)),
        "attn_k_norm.weight": ones,
    }


def _plus_one(array: F32, config: Mapping[str, Any]) -> F32:
    """Weights of a layer's norm, which the checkpoint has around 0; those of the last norm are as they are."""
    return array + np.float32(1)


MUSE_FOLDS: Mapping[str, Fold] = dict.fromkeys(
    ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), _plus_one
)
