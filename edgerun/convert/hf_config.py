"""Hugging Face config.json -> GGUF hyperparameters. Source: llama.cpp's convert_hf_to_gguf.py, GGUF spec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.hf_families import FAMILIES, SPARSE_ACTIVATIONS
from edgerun.convert.hf_family import Family
from edgerun.convert.hf_gemma4 import proportional_factors
from edgerun.errors import FormatError, UnsupportedError


@dataclass(frozen=True)
class HfConfig:
    """The numbers of a checkpoint that the conversion needs; `raw` is its (text) config, flattened."""

    family: Family
    raw: Mapping[str, Any]
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    n_experts: int
    n_experts_used: int
    d_ff_expert: int
    d_ff_shared: int
    rope: Mapping[str, Any] = field(default_factory=dict)  # type, factor ... of full attention
    rope_base: float = 10000.0
    tied_head: bool = True

    @property
    def sparse(self) -> bool:
        """Whether its neurons mostly do not fire: up and down are then stored row by row of a neuron."""
        return self.family.sparse and self.raw.get("hidden_act") in SPARSE_ACTIVATIONS

    @property
    def rope_dims(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.head_dim * _number(self.raw, "partial_rotary_factor", 1.0))


def parse_config(config: Mapping[str, Any], where: str) -> HfConfig:
    """Check and read a config.json. UnsupportedError for families and options that have no GGUF equal;
    FormatError for missing or impossible numbers."""
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text, "model_type": text.get("model_type", f"{config.get('model_type')}_text")}
    model_type = config.get("model_type")
    if model_type == "nemotron_h" and config.get("n_routed_experts"):  # GGUF has two architectures
        model_type = "nemotron_h_moe"
    if model_type == "gemma4_text" and config.get("enable_moe_block"):
        model_type = "gemma4_moe_text"
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise UnsupportedError(
            f"{where}: the model_type {model_type!r} is not one that edgerun converts: {', '.join(FAMILIES)}"
        )
    quantised = config.get("quantization_config")
    if quantised and not (isinstance(quantised, dict) and quantised.get("quant_method") == family.quantised_as):
        raise UnsupportedError(f"{where}: the checkpoint is quantised already; convert the unquantised one")
    config = family.prepare({**family.defaults, **{key: value for key, value in config.items() if value is not None}})
    read = _Reader(config, where)
    _refuse(family, read)
    n_heads, d_model = read.size("num_attention_heads"), read.size("hidden_size")
    if "head_dim" not in config and d_model % n_heads:
        raise FormatError(f"{where}: hidden_size {d_model} is no multiple of num_attention_heads {n_heads}")
    n_kv_heads = read.size("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise FormatError(f"{where}: {n_heads} heads do not share {n_kv_heads} key heads evenly")
    head_dim = read.size("head_dim", d_model // n_heads)
    rotated = head_dim * _number(config, "partial_rotary_factor", 1.0)
    if head_dim % 2 or rotated % 2 or rotated > head_dim:
        raise FormatError(f"{where}: {rotated} dimensions cannot be rotated in a head of {head_dim}")
    experts = "num_experts" if "num_experts" in config else "num_local_experts"
    n_experts = read.size(experts) if family.experts or family.fused_experts else 0
    rope, base = _rope(config, family, where)
    made = HfConfig(
        family=family,
        raw=config,
        n_layers=read.size("num_hidden_layers"),
        d_model=d_model,
        d_ff=read.size("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=read.size("vocab_size"),
        context_length=read.size("max_position_embeddings"),
        n_experts=n_experts,
        n_experts_used=read.size("num_experts_per_tok") if n_experts else 0,
        d_ff_expert=read.size("moe_intermediate_size", read.size("intermediate_size")) if n_experts else 0,
        d_ff_shared=read.size("shared_expert_intermediate_size", 0),
        rope=rope,
        rope_base=base,
        tied_head=bool(config.get("tie_word_embeddings", family.tied_by_default)),
    )
    _check_scale(made, where)
    return made


def hyperparameters(c: HfConfig) -> dict[str, Any]:
    """GGUF keys (without the architecture's prefix) and values; floats are written as 32-bit."""
    raw = c.raw
    values: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "context_length": c.context_length,
        "embedding_length": c.d_model,
        "block_count": c.n_layers,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": _number(raw, "rms_norm_eps", 1e-6),
        "rope.dimension_count": c.rope_dims,
        "rope.freq_base": c.rope_base,
    }
    if c.n_experts:
        values["expert_count"] = c.n_experts
        values["expert_used_count"] = c.n_experts_used
        if c.family.architecture != "llama":
            values["expert_feed_forward_length"] = c.d_ff_expert
    if c.d_ff_shared:
        values["expert_shared_feed_forward_length"] = c.d_ff_shared
    if c.family.sliding_window and (raw.get("sliding_window") or _has_a_window(c)):
        values["attention.sliding_window"] = _count(raw, "sliding_window", 0)
    if c.family.softcaps:
        for theirs, key in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
            if raw.get(f"{theirs}_logit_softcapping"):
                values[key] = _number(raw, f"{theirs}_logit_softcapping", 0.0)
    if c.sparse:
        values["hidden_activation"] = raw["hidden_act"]
    return values | _rope_scaling(c) | c.family.values(raw)


def _has_a_window(c: HfConfig) -> bool:
    """Whether some layers of the family always have one: then 0 is a mistake, and not a model without windows."""
    return "sliding_window" in c.family.defaults and c.raw.get("sliding_window") is not None


def rope_tensors(c: HfConfig) -> dict[str, NDArray[np.float32]]:
    """RoPE factors that GGUF keeps as tensors: llama3's per-frequency divisors, longrope's two sets."""
    rope_type = _rope_type(c.rope)
    half = c.rope_dims // 2
    if rope_type == "llama3":
        return {"rope_freqs.weight": _llama3_factors(c)}
    if rope_type == "proportional":
        return {"rope_freqs.weight": proportional_factors(c.rope, c.raw)}
    if rope_type in ("longrope", "su"):
        made = {}
        for which in ("long", "short"):
            factors = c.rope.get(f"{which}_factor")
            if not isinstance(factors, list) or len(factors) != half:
                raise FormatError(f"config.json: {which}_factor of rope_scaling does not have {half} numbers")
            numbers = [_number({"factor": factor}, "factor", 1.0) for factor in factors]
            made[f"rope_factors_{which}.weight"] = np.asarray(numbers, np.float32)
        return made
    return {}


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number; `default` where there is none."""
    value = config.get(key)
    if value is None:
        return float(default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise FormatError(f"config.json: {key} is {value!r}, not a positive number")
    return float(value)


def _count(config: Mapping[str, Any], key: str, default: float) -> int:
    """A positive whole number that a GGUF's 32 bits hold; some configs write 4096.0."""
    value = _number(config, key, default)
    if not 1 <= value < 1 << 31:
        raise FormatError(f"config.json: {key} is {value:g}, not a count")
    return int(value)


class _Reader:
    """Numbers out of a config, checked."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key, default)
        if value is None:
            raise FormatError(f"{self.where}: {key} is missing")
        if type(value) is not int or not (0 < value < 1 << 31 or value == default):
            raise FormatError(f"{self.where}: {key} is {value!r}, not a positive number")
        return value


def _refuse(family: Family, read: _Reader) -> None:
    """What a config may ask for and GGUF's architecture cannot do."""
    for key, only in family.requires.items():
        value = read.config.get(key, only[0])
        if key == "hidden_act" and family.sparse and value in SPARSE_ACTIVATIONS:
            continue
        if value not in only:
            raise UnsupportedError(
                f"{read.where}: {key} is {value!r}; GGUF's {family.architecture} means {only[0]!r} by definition"
            )


def _check_scale(c: HfConfig, where: str) -> None:
    """GGUF does not say what attention scores are divided by: the architecture does."""
    wide = c.family.wide_scale_layers == c.n_layers
    expected = c.d_model / c.n_heads if wide else c.head_dim
    given = _number(c.raw, "query_pre_attn_scalar", expected)
    if given != expected:
        raise UnsupportedError(
            f"{where}: query_pre_attn_scalar is {given:g}; GGUF's {c.family.architecture} means {expected:g}"
        )


def _rope(config: Mapping[str, Any], family: Family, where: str) -> tuple[dict[str, Any], float]:
    """Scaling and base of the layers with full attention."""
    given = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if not isinstance(given, dict) or not isinstance(scaling, dict):
        raise FormatError(f"{where}: rope_parameters or rope_scaling is not an object")
    local = config.get("rope_local_base_freq")
    if isinstance(given.get("full_attention"), dict):
        sliding = given.get("sliding_attention")
        local = sliding.get("rope_theta", local) if isinstance(sliding, dict) else local
        given = given["full_attention"]
    rope = {**given, **scaling}
    base = _number(rope, "rope_theta", _number(config, "rope_theta", 10000.0))
    if local not in (None, family.local_rope_base):
        raise UnsupportedError(
            f"{where}: rope_local_base_freq is {local!r}; GGUF's {family.architecture} means {family.local_rope_base:g}"
        )
    return rope, base


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default"))).lower()


def _rope_scaling(c: HfConfig) -> dict[str, Any]:
    rope_type = _rope_type(c.rope)
    if rope_type in ("default", "llama3", "mrope", "proportional"):
        return {}
    key = "original_max_position_embeddings"
    original = _count(c.rope, key, _count(c.raw, key, c.context_length))
    if rope_type in ("longrope", "su"):
        ratio = c.context_length / original if original > 1 else 1.0
        factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        return {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": _number(c.rope, "attention_factor", factor),
        }
    if rope_type not in ("linear", "yarn"):
        raise UnsupportedError(f"config.json: the rope_scaling type {rope_type!r} has no equal in GGUF")
    values: dict[str, Any] = {
        "rope.scaling.type": rope_type,
        "rope.scaling.factor": _number(c.rope, "factor", 1.0),
    }
    if rope_type == "yarn":
        values["rope.scaling.original_context_length"] = original
        for name in ("beta_fast", "beta_slow"):
            if c.rope.get(name) is not None:
                values[f"rope.scaling.yarn_{name}"] = _number(c.rope, name, 0.0)
        implied = 0.1 * math.log(max(values["rope.scaling.factor"], 1.0)) + 1.0
        given = _number(c.rope, "attention_factor", implied)
        if given != implied:
            values["rope.scaling.attn_factor"] = given / implied  # GGUF's comes on top of the implied one
    return values


def _llama3_factors(c: HfConfig) -> NDArray[np.float32]:
    """(rope_dims / 2) f32 divisors of the frequencies. Source: transformers, _compute_llama3_parameters."""
    factor = _number(c.rope, "factor", 8.0)
    low, high = _number(c.rope, "low_freq_factor", 1.0), _number(c.rope, "high_freq_factor", 4.0)
    original = _number(c.rope, "original_max_position_embeddings", 8192)
    if high <= low:
        raise FormatError("config.json: rope_scaling of type llama3 has impossible factors")
    exponents = np.arange(0, c.rope_dims, 2, dtype=np.float64) / c.rope_dims
    wavelengths = 2 * math.pi * c.rope_base**exponents
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths > original / low, factor, between)
    return np.where(wavelengths < original / high, 1.0, factors).astype(np.float32)
