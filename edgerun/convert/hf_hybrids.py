"""What is particular about configs and tensors of families whose layers are not all of a kind.

Source: llama.cpp's converter (conversion/), for names, numbers and folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_numbers import real_of, whole_of
from edgerun.errors import FormatError

F32 = NDArray[np.float32]
Fold = Callable[[F32, Mapping[str, Any]], F32]
"""A tensor of the checkpoint and its config -> the tensor that GGUF keeps."""


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """The kind of each layer. FormatError when config.json does not say it of all."""
    kinds = config.get("layer_types")
    n_layers = config.get("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != n_layers or not all(isinstance(kind, str) for kind in kinds):
        raise FormatError(f"config.json: layer_types does not name the kind of each of {n_layers!r} layers")
    return kinds


def prepare_lfm2(config: dict[str, Any]) -> dict[str, Any]:
    """Names and numbers as other families have them: the width of the feed-forward is rounded, older configs list the
    layers with attention."""
    made = dict(config)
    made.setdefault("rms_norm_eps", config.get("norm_eps", 1e-5))
    made.setdefault("tie_word_embeddings", config.get("tie_embedding", True))
    taps = made.setdefault("conv_L_cache", 3)
    if type(taps) is not int or not 1 < taps < 1 << 16:
        raise FormatError(f"config.json: conv_L_cache is {taps!r}, not a number of taps")
    n_layers = config.get("num_hidden_layers")
    if "layer_types" not in config and isinstance(config.get("full_attn_idxs"), list) and isinstance(n_layers, int):
        attends = config["full_attn_idxs"]
        made["layer_types"] = ["full_attention" if i in attends else "conv" for i in range(min(n_layers, 1 << 16))]
    width = config.get("block_ff_dim", config.get("intermediate_size"))
    if config.get("block_auto_adjust_ff_dim") and type(width) is int:
        multiple = config.get("block_multiple_of", 256)
        factor = config.get("block_ffn_dim_multiplier", 1.0)
        if type(multiple) is not int or multiple < 1 or not isinstance(factor, int | float):
            raise FormatError("config.json: block_multiple_of or block_ffn_dim_multiplier is no number")
        width = int(factor * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    made["intermediate_size"] = width
    return made


def lfm2_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Layers without attention have no heads of keys."""
    kv_heads = config.get("num_key_value_heads", config.get("num_attention_heads"))
    return {
        "attention.head_count_kv": [0 if kind == "conv" else kv_heads for kind in layer_types(config)],
        "shortconv.l_cache": config["conv_L_cache"],
    }


def lfm2moe_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Experts are chosen by sigmoids, after some layers without."""
    return {
        **lfm2_values(config),
        "leading_dense_block_count": n_leading(config, "num_dense_layers"),
        "expert_gating_func": 2,
    }


def n_leading(config: Mapping[str, Any], key: str) -> int:
    """How many of the first layers have no experts."""
    value = config.get(key, 0)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise FormatError(f"config.json: {key} is {value!r}, not a number of layers")
    return value


def prepare_qwen35(config: dict[str, Any]) -> dict[str, Any]:
    """What is rotated of a head stands with the other numbers of the rotation; what kind a layer is may have to be
    counted."""
    made = dict(config)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "partial_rotary_factor" in rope:
        made["partial_rotary_factor"] = rope["partial_rotary_factor"]
    n_layers, interval = config.get("num_hidden_layers"), config.get("full_attention_interval", 4)
    if "layer_types" not in config and type(n_layers) is int and type(interval) is int and interval > 0:
        kinds = ("linear_attention", "full_attention")
        made["layer_types"] = [kinds[(i + 1) % interval == 0] for i in range(min(n_layers, 1 << 16))]
    return made


def qwen35_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the delta net, and of the rotation's sections."""
    key_heads, value_heads, key_dim, value_dim = _delta_sizes(config)
    return {
        "ssm.conv_kernel": whole_of(config, "linear_conv_kernel_dim"),
        "ssm.state_size": key_dim,
        "ssm.group_count": key_heads,
        "ssm.time_step_rank": value_heads,
        "ssm.inner_size": value_dim * value_heads,
        "full_attention_interval": whole_of({"full_attention_interval": 4, **config}, "full_attention_interval"),
        "attention.recurrent_layers": np.array([kind == "linear_attention" for kind in layer_types(config)]),
        **section_values(config, (11, 11, 10)),
    }


def section_values(config: Mapping[str, Any], default: tuple[int, ...] = (24, 20, 20)) -> dict[str, Any]:
    """Which pairs of dimensions turn by the time, by the row and by the column: in text all are the same."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    sections = rope.get("mrope_section", default) if isinstance(rope, Mapping) else ()
    if (
        not isinstance(sections, list | tuple)
        or len(sections) != 3
        or not all(type(n) is int and n >= 0 for n in sections)
    ):
        raise FormatError("config.json: mrope_section is not three counts")
    return {"rope.dimension_sections": [*sections, 0]}


def ministral3_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Queries of late positions grow; what YaRN would scale by is scaled back."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or rope.get("rope_type") != "yarn":
        raise FormatError("config.json: rope_parameters is not of type yarn")
    return {
        "attention.temperature_scale": real_of(rope, "llama_4_scaling_beta", 0.0),
        "rope.scaling.yarn_log_multiplier": real_of(rope, "mscale_all_dim", 0.0),
    }


def delta_channels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of queries, keys and values together, and of values alone."""
    key_heads, value_heads, key_dim, value_dim = _delta_sizes(config)
    return 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim


def _delta_sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(key heads, value heads, key dimensions, value dimensions)."""
    names = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    key_heads, value_heads, key_dim, value_dim = (whole_of(config, name) for name in names)
    if value_heads % key_heads:
        raise FormatError(f"config.json: {value_heads} value heads do not share {key_heads} key heads evenly")
    return key_heads, value_heads, key_dim, value_dim


def _tiled(config: Mapping[str, Any], dim: int) -> NDArray[np.intp]:
    """The order of rows of value heads, `dim` each: theirs lie beside the key head that they share, GGUF's go through
    all key heads again and again."""
    key_heads, value_heads, _, _ = _delta_sizes(config)
    order = np.arange(value_heads * dim).reshape(key_heads, value_heads // key_heads, dim)
    return order.swapaxes(0, 1).reshape(-1)


def _value_rows(array: F32, config: Mapping[str, Any]) -> F32:
    """Rows of queries and keys, then those of values."""
    channels, n_values = delta_channels(config)
    first = channels - n_values
    tiled = _tiled(config, n_values // _delta_sizes(config)[1])
    order = np.concatenate([np.arange(first), first + tiled])
    return np.ascontiguousarray(array.reshape(channels, -1)[order])


def _rows(array: F32, config: Mapping[str, Any]) -> F32:
    """Rows of value heads, as many as a head has."""
    return np.ascontiguousarray(array[_tiled(config, len(array) // _delta_sizes(config)[1])])


def _columns(array: F32, config: Mapping[str, Any]) -> F32:
    return np.ascontiguousarray(array[:, _tiled(config, array.shape[1] // _delta_sizes(config)[1])])


def _decay(array: F32, config: Mapping[str, Any]) -> F32:
    return _rows(-np.exp(array), config)


def _as_it_is(array: F32, config: Mapping[str, Any]) -> F32:
    return array


DELTA_FOLDS: Mapping[str, Fold] = {
    "attn_qkv": _value_rows,
    "attn_gate": _rows,
    "ssm_alpha": _rows,
    "ssm_beta": _rows,
    "ssm_conv1d": _value_rows,
    "ssm_a": _decay,
    "ssm_dt.bias": _rows,
    "ssm_norm": _as_it_is,  # the one norm whose weights are not about 0
    "ssm_out": _columns,
}
