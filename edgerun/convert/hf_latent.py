"""Checkpoints with latent attention: DeepSeek-V2 and V3, GLM-4.7-Flash.

Source: llama.cpp's converter (conversion/deepseek.py), for names, numbers and folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_numbers import count_of, real_of, whole_of
from edgerun.errors import UnsupportedError

F32 = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


def prepare_latent(config: dict[str, Any]) -> dict[str, Any]:
    """Names and numbers as other families have them. UnsupportedError for what GGUF cannot say."""
    rank = count_of(config, "q_lora_rank")
    made = dict(config)
    made["layer_types"] = ["low_rank" if rank else "direct"] * whole_of(config, "num_hidden_layers")
    made["head_dim"] = whole_of(config, "qk_nope_head_dim") + whole_of(config, "qk_rope_head_dim")
    made["num_key_value_heads"] = config.get("num_attention_heads")
    made["num_experts"] = whole_of(config, "n_routed_experts")
    made["shared_expert_intermediate_size"] = whole_of(config, "n_shared_experts") * whole_of(
        config, "moe_intermediate_size"
    )
    made.pop("partial_rotary_factor", None)
    if config.get("topk_method") == "group_limited_greedy" and count_of(config, "n_group") > 1:
        raise UnsupportedError("config.json: groups of experts that are chosen by their best have no equal in GGUF")
    return made


def latent_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is kept of a position, of the experts and of the rotation."""
    rank, rotated = whole_of(config, "kv_lora_rank"), whole_of(config, "qk_rope_head_dim")
    is_sigmoid = config.get("scoring_func", "softmax") == "sigmoid"
    values: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rotated,
        "attention.value_length": rank,
        "attention.key_length_mla": config["head_dim"],
        "attention.value_length_mla": whole_of(config, "v_head_dim"),
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": rotated,
        "leading_dense_block_count": count_of(config, "first_k_dense_replace"),
        "expert_shared_count": whole_of(config, "n_shared_experts"),
        "expert_weights_scale": real_of(config, "routed_scaling_factor", 1.0),
        "expert_weights_norm": bool(config.get("norm_topk_prob")),
        "expert_gating_func": 2 if is_sigmoid else 1,
    }
    if count_of(config, "q_lora_rank"):
        values["attention.q_lora_rank"] = whole_of(config, "q_lora_rank")
    if count_of(config, "n_group") > 1:
        values["expert_group_count"] = whole_of(config, "n_group")
        values["expert_group_used_count"] = whole_of(config, "topk_group")
    return values | _yarn_values(config)


def _yarn_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What YaRN multiplies scores by. In files it is a tenth of the checkpoint's number."""
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    if rope.get("rope_type", rope.get("type")) != "yarn":
        return {}
    of_all = real_of(rope, "mscale_all_dim", 0.0)
    if not of_all or real_of(rope, "mscale", 1.0) != of_all:
        raise UnsupportedError("config.json: mscale and mscale_all_dim of rope_scaling differ: GGUF has one for both")
    return {"rope.scaling.yarn_log_multiplier": 0.1 * of_all}


def latent_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Of any layer's tensors in the checkpoint, by GGUF's names."""
    d, heads = whole_of(config, "hidden_size"), whole_of(config, "num_attention_heads")
    rank, low = whole_of(config, "kv_lora_rank"), count_of(config, "q_lora_rank")
    plain, value = whole_of(config, "qk_nope_head_dim"), whole_of(config, "v_head_dim")
    both = heads * (plain + value), rank
    return {
        "attn_q_a": (low, d),
        "attn_q_a_norm": (low,),
        "attn_q_b": (heads * config["head_dim"], low),
        "attn_kv_a_mqa": (rank + whole_of(config, "qk_rope_head_dim"), d),
        "attn_kv_a_norm": (rank,),
        "attn_k_b": both,
        "attn_v_b": both,
        "attn_output": (d, heads * value),
    }


def keys_of(array: F32, config: Mapping[str, Any]) -> F32:
    """Every head's keys, turned (heads, rank, dimensions): queries are multiplied with them."""
    return np.ascontiguousarray(_by_head(array, config)[:, : config["qk_nope_head_dim"]].swapaxes(1, 2))


def values_of(array: F32, config: Mapping[str, Any]) -> F32:
    """Every head's values, (heads, dimensions, rank)."""
    return np.ascontiguousarray(_by_head(array, config)[:, config["qk_nope_head_dim"] :])


def _by_head(array: F32, config: Mapping[str, Any]) -> F32:
    return array.reshape(config["num_attention_heads"], -1, array.shape[1])
