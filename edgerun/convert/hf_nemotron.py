"""Checkpoints of Nemotron-H and Nemotron 3 Nano, in which a layer is Mamba-2, attention or a feed-forward alone.

Source: llama.cpp's converter (conversion/nemotron.py), for names, numbers and folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_numbers import count_of, real_of, whole_of
from edgerun.errors import FormatError

F32 = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]

_KINDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}  # of newer configs


def prepare_nemotron(config: dict[str, Any]) -> dict[str, Any]:
    """What kind a layer is stands in a string or a list; numbers as other families have them."""
    made = dict(config)
    pattern = config.get("hybrid_override_pattern") or config.get("layers_block_type")
    names = _KINDS if isinstance(pattern, str) else _NAMES
    if not isinstance(pattern, str | list):
        raise FormatError("config.json: hybrid_override_pattern does not name the kind of each layer")
    kinds = [names.get(str(each), str(each)) for each in pattern]
    made["layer_types"], made["num_hidden_layers"] = kinds, len(kinds)
    made["rms_norm_eps"] = real_of(config, "layer_norm_epsilon", real_of(config, "norm_eps", 1e-5))
    made.setdefault("head_dim", config.get("attention_head_dim"))
    if config.get("n_routed_experts"):
        made["num_experts"] = whole_of(config, "n_routed_experts")
        made["shared_expert_intermediate_size"] = whole_of(config, "moe_shared_expert_intermediate_size")
        made.setdefault("intermediate_size", made.get("moe_intermediate_size"))
    return made


def nemotron_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer lacks has no columns or no heads."""
    kinds, heads = config["layer_types"], whole_of(config, "mamba_num_heads")
    is_mixture = "num_experts" in config
    ff = whole_of(config, "moe_intermediate_size" if is_mixture else "intermediate_size")
    kv_heads = whole_of(config, "num_key_value_heads")
    values: dict[str, Any] = {
        "attention.head_count_kv": [kv_heads if kind == "attention" else 0 for kind in kinds],
        "feed_forward_length": [ff if kind in ("mlp", "moe") else 0 for kind in kinds],
        "attention.layer_norm_epsilon": config["rms_norm_eps"],
        "ssm.conv_kernel": whole_of(config, "conv_kernel"),
        "ssm.state_size": whole_of(config, "ssm_state_size"),
        "ssm.group_count": whole_of(config, "n_groups"),
        "ssm.inner_size": heads * whole_of(config, "mamba_head_dim"),
        "ssm.time_step_rank": heads,
    }
    if is_mixture:
        values |= {
            "expert_shared_count": whole_of(config, "n_shared_experts"),
            "expert_weights_norm": bool(config.get("norm_topk_prob", True)),
            "expert_weights_scale": real_of(config, "routed_scaling_factor", 1.0),
            "expert_gating_func": 2,
        }
    if is_mixture and count_of(config, "n_group") > 1:
        values["expert_group_count"] = whole_of(config, "n_group")
        values["expert_group_used_count"] = whole_of(config, "topk_group")
    return values


def nemotron_shapes(config: Mapping[str, Any], layer: int) -> Shapes:
    """Of any layer's tensors in the checkpoint, by GGUF's names."""
    d, heads, taps = whole_of(config, "hidden_size"), whole_of(config, "mamba_num_heads"), config.get("conv_kernel")
    inner = heads * whole_of(config, "mamba_head_dim")
    channels = inner + 2 * whole_of(config, "n_groups") * whole_of(config, "ssm_state_size")
    return {
        "ssm_in": (inner + channels + heads, d),
        "ssm_conv1d": (channels, taps if isinstance(taps, int) else 0),
        "ssm_conv1d.bias": (channels,),
        "ssm_dt.bias": (heads,),
        "ssm_a": (heads,),
        "ssm_d": (heads,),
        "ssm_norm": (inner,),
        "ssm_out": (d, inner),
    }


def _decay(array: F32, config: Mapping[str, Any]) -> F32:
    return -np.exp(array).reshape(-1, 1)


def _column(array: F32, config: Mapping[str, Any]) -> F32:
    return array.reshape(-1, 1)


def _groups(array: F32, config: Mapping[str, Any]) -> F32:
    return array.reshape(whole_of(config, "n_groups"), -1)


def _taps(array: F32, config: Mapping[str, Any]) -> F32:
    return array.reshape(len(array), -1)


NEMOTRON_FOLDS = {"ssm_a": _decay, "ssm_d": _column, "ssm_norm": _groups, "ssm_conv1d": _taps}
