"""Checkpoints of Gemma 4: layers of two sizes of heads, some of which read the keys and values of others, fed by
embeddings of their own, with a mixture beside the feed-forward in some models.

Source: llama.cpp's converter (conversion/gemma.py), for names, numbers and folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgerun.convert.hf_family import Names
from edgerun.convert.hf_hybrids import layer_types
from edgerun.convert.hf_numbers import count_of, real_of, whole_of
from edgerun.errors import FormatError, UnsupportedError

Shapes = dict[str, tuple[int, ...]]
_KINDS = {"sliding_attention": "sliding", "full_attention": "full"}


def prepare_gemma4(config: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers, and names that others have."""
    made = {**config, "layer_types": layer_kinds(config), **_of_full_layers(config)}
    if config.get("enable_moe_block"):
        made["num_experts_per_tok"] = config.get("top_k_experts", config.get("num_experts_per_tok"))
        made["moe_intermediate_size"] = config.get("moe_intermediate_size", config.get("expert_intermediate_size"))
    return made


def _of_full_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dimensions and numbers of heads of layers without a window: transformers 5 saves what layers have of their own,
    before it had names for them, of which the second counts only where values are keys."""
    kinds, own = layer_types(config), config.get("per_layer_config")
    if not isinstance(own, Mapping):
        return {} if config.get("attention_k_eq_v") else {"num_global_key_value_heads": None}
    full = [own.get(str(layer)) for layer, kind in enumerate(kinds) if kind == "full_attention"]
    first = full[0] if full else None
    if (
        not isinstance(first, Mapping)
        or not set(first) <= {"head_dim", "num_key_value_heads"}
        or full != [first] * len(own)
    ):
        raise UnsupportedError("config.json: per_layer_config is not the same of all layers with full attention alone")
    return {
        "global_head_dim": first.get("head_dim", config.get("head_dim")),
        "num_global_key_value_heads": first.get("num_key_value_heads"),
    }


def layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """Of each layer: whether it has a window, and which of its tensors it has itself: "full", "sliding", "full of
    keys" (values are what the keys are made of), or one of the first two "shared"."""
    kinds: list[str] = []
    unknown = set(layer_types(config)) - set(_KINDS)
    if unknown:
        raise UnsupportedError(f"config.json: a layer of type {min(unknown)!r}; edgerun converts {', '.join(_KINDS)}")
    shared = count_of(config, "num_kv_shared_layers")
    for layer, each in enumerate(layer_types(config)):
        kind = _KINDS[each]
        if layer >= len(layer_types(config)) - shared:
            kind += " shared"
        elif kind == "full" and config.get("attention_k_eq_v"):
            kind += " of keys"
        kinds.append(kind)
    return kinds


def spare_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys and values of layers that read those of others."""
    shared = [layer for layer, kind in enumerate(config["layer_types"]) if kind.endswith(" shared")]
    return tuple(
        f"layers.{layer}.self_attn.{part}.weight" for layer in shared for part in ("k_proj", "v_proj", "k_norm")
    )


def gemma4_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of windows, heads and widths, layer by layer."""
    kinds, (narrow, wide) = config["layer_types"], _head_dims(config)
    windowed = np.array([_is_windowed(kind) for kind in kinds])
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {}
    values: dict[str, Any] = {
        "attention.sliding_window_pattern": windowed,
        "attention.shared_kv_layers": count_of(config, "num_kv_shared_layers"),
        "attention.head_count_kv": [_kv_heads(config, layer) for layer in range(len(kinds))],
        "attention.key_length": wide,
        "attention.value_length": wide,
        "attention.key_length_swa": narrow,
        "attention.value_length_swa": narrow,
        "rope.dimension_count": wide,
        "rope.dimension_count_swa": narrow,
        "rope.freq_base_swa": real_of(local, "rope_theta", 10000.0),
        "feed_forward_length": [_width(config, layer) for layer in range(len(kinds))],
        "embedding_length_per_layer_input": count_of(config, "hidden_size_per_layer_input"),
        # Said even where there is none: of a file that says nothing it is 30.
        "final_logit_softcapping": real_of(config, "final_logit_softcapping", 0.0),
    }
    return values


def gemma4_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Of a layer's tensors in the checkpoint, by GGUF's names."""
    d, width, fed = (
        whole_of(config, "hidden_size"),
        _width(config, layer),
        count_of(config, "hidden_size_per_layer_input"),
    )
    dim = _head_dims(config)[not _is_windowed(config["layer_types"][layer])]
    q, kv = whole_of(config, "num_attention_heads") * dim, _kv_heads(config, layer) * dim
    shapes: Shapes = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
    shapes |= {"attn_q_norm": (dim,), "attn_k_norm": (dim,), "layer_output_scale.weight": (1,)}
    shapes |= {"ffn_gate": (width, d), "ffn_up": (width, d), "ffn_down": (d, width)}
    shapes |= {"ffn_gate_inp.scale": (d,), "ffn_down_exps.scale": (count_of(config, "num_experts"),)}
    return shapes | {"inp_gate": (fed, d), "proj": (d, fed)}


def gemma4_outside(config: Mapping[str, Any]) -> Names:
    """GGUF's tensors outside the layers -> the checkpoint's and their shapes: what every layer is fed beside."""
    fed, d = count_of(config, "hidden_size_per_layer_input"), whole_of(config, "hidden_size")
    if not fed:
        return {}
    cols = fed * whole_of(config, "num_hidden_layers")
    rows = config.get("vocab_size_per_layer_input", whole_of(config, "vocab_size"))
    return {
        "per_layer_token_embd.weight": ("embed_tokens_per_layer.weight", (rows, cols)),
        "per_layer_model_proj.weight": ("per_layer_model_projection.weight", (cols, d)),
        "per_layer_proj_norm.weight": ("per_layer_projection_norm.weight", (fed,)),
    }


def proportional_factors(rope: Mapping[str, Any], config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(wide / 2) f32: the first pairs of a head of full attention turn, the others are divided until they stand
    still."""
    half, share = _head_dims(config)[1] // 2, real_of(rope, "partial_rotary_factor", 1.0)
    return np.where(np.arange(half) < int(2 * half * share / 2), 1.0, 1e30).astype(np.float32)


def _is_windowed(kind: str) -> bool:
    return kind.startswith("sliding")


def _head_dims(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of layers with a window, and of the others."""
    narrow, wide = whole_of(config, "head_dim"), whole_of(config, "global_head_dim")
    if narrow % 2 or wide % 2:
        raise FormatError(f"config.json: heads of {narrow} and {wide} dimensions cannot be rotated")
    return narrow, wide


def _kv_heads(config: Mapping[str, Any], layer: int) -> int:
    key = "num_key_value_heads"
    if not _is_windowed(config["layer_types"][layer]) and config.get("num_global_key_value_heads"):
        key = "num_global_key_value_heads"
    return whole_of(config, key)


def _width(config: Mapping[str, Any], layer: int) -> int:
    """Of the feed-forward, which is doubled in layers that share keys and values."""
    doubled = config.get("use_double_wide_mlp") and config["layer_types"][layer].endswith("shared")
    return whole_of(config, "intermediate_size") * (2 if doubled else 1)
