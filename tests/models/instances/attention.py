"""Instances of families that differ in what their attention does."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance

_Q8: dict[str, Any] = {"type": GgmlType.Q8_0, "d": 256, "ff": 256, "head_dim": 64}
_QKV_BIAS = ("attn_q", "attn_k", "attn_v")
_MOE: dict[str, Any] = {"experts": 8, "used": 3, "ff_expert": 64}
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 8,
    "rope.scaling.yarn_beta_fast": 16.0,
    "rope.scaling.yarn_beta_slow": 2.0,
}
_SECTIONS_16 = np.array([3, 3, 2, 0], np.int32)  # of eight pairs
_SECTIONS_64 = np.array([12, 10, 10, 0], np.int32)
_MULTIPLIERS = {"embedding_scale": 6.0, "residual_scale": 0.4, "attention.scale": 0.09, "logit_scale": 3.0}
_PACKED = {"attn_qkv": 1}


def _bools(*values: int) -> np.ndarray:
    return np.array(values, bool)


def _swa(head_dim: int) -> dict[str, int]:
    """Of layers with a window, whose heads are narrower."""
    return {f"attention.{each}_length_swa": head_dim for each in ("key", "value")} | {
        "rope.dimension_count_swa": head_dim
    }


ATTENTION = [
    Instance("qwen2vl", "qwen2vl", biases=_QKV_BIAS, metadata={"rope.dimension_sections": _SECTIONS_16}),
    Instance("qwen2vl-Q8_0", "qwen2vl", layers=2, metadata={"rope.dimension_sections": _SECTIONS_64}, **_Q8),
    Instance("qwen3vl", "qwen3vl", kv_heads=1, metadata={"rope.dimension_sections": _SECTIONS_16}),
    Instance(
        "qwen3vl-packed-Q8_0",
        "qwen3vl",
        telling=_PACKED,
        metadata={"rope.dimension_sections": _SECTIONS_64},
        **_Q8,
    ),
    Instance("qwen3vlmoe", "qwen3vlmoe", metadata={"rope.dimension_sections": _SECTIONS_16}, **_MOE),
    Instance(
        "qwen3vlmoe-Q8_0",
        "qwen3vlmoe",
        layers=2,
        kv_heads=4,
        metadata={"rope.dimension_sections": _SECTIONS_64},
        **_MOE,
        **_Q8,
    ),
    Instance(
        "mistral3",
        "mistral3",
        metadata={**_YARN, "rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.3},
    ),
    Instance("mistral3-plain-Q8_0", "mistral3", kv_heads=1, tied=True, **_Q8),
    Instance("mistral3-moe", "mistral3", experts=8, used=3, metadata={**_YARN, "attention.temperature_scale": 0.1}),
    Instance(
        "muse",
        "muse-glimmer",
        layers=4,
        window=12,
        metadata={"logit_scale": 0.4, "final_logit_softcapping": 30.0, "rope.freq_base_swa": 30000.0},
    ),
    Instance(
        "muse-array-Q8_0",
        "muse-glimmer",
        layers=5,
        window=6,
        kv_heads=1,
        telling=_PACKED,
        metadata={"logit_scale": 2.0, "attention.sliding_window_pattern": _bools(1, 0, 1, 1, 0)},
        **_Q8,
    ),
    # llama.cpp caps the logits, and Gemma 2's scores, also where a file does not say so
    Instance("muse-silent", "muse-glimmer", layers=2, window=12, metadata={"logit_scale": 2.0}),
    Instance("gemma2-silent", "gemma2", layers=2, window=12, tied=True, head_dim=64),
    Instance("gemma", "gemma", tied=True),
    Instance("gemma-Q8_0", "gemma", tied=True, layers=2, kv_heads=1, **_Q8),
    Instance("smollm3", "smollm3", layers=5),
    Instance("smollm3-Q8_0", "smollm3", layers=4, tied=True, kv_heads=4, **_Q8),
    Instance(
        "granite-swa",
        "granite_swa",
        layers=4,
        window=12,
        metadata={
            **_MULTIPLIERS,
            "attention.sliding_window_pattern": _bools(1, 0, 1, 0),
            "attention.rope_pattern": _bools(1, 0, 0, 1),
        },
    ),
    Instance(
        "granite-swa-moe-Q8_0",
        "granite_swa",
        window=6,
        experts=8,
        used=3,
        ff_shared=64,
        fused=("ffn_up_shexp",),
        metadata={"logit_scale": 2.0, "attention.sliding_window_pattern": _bools(0, 1, 1)},
        **_Q8,
    ),
    Instance("olmo2", "olmo2", kv_heads=4),
    Instance("olmo3", "olmo2", layers=5, window=12, metadata={**_YARN, "rope.scaling.attn_factor": 1.2}),
    Instance("olmo3-Q8_0", "olmo2", layers=4, window=6, kv_heads=1, **_Q8),
    Instance("exaone4", "exaone4", tied=True),
    Instance("exaone4-64", "exaone4", layers=64, window=12, d=32, heads=2, ff=64, tied=True),
    Instance("exaone4-Q8_0", "exaone4", kv_heads=1, **_Q8),
    Instance("seed", "seed_oss", biases=_QKV_BIAS),
    Instance("seed-Q8_0", "seed_oss", biases=_QKV_BIAS, tied=True, **_Q8),
    Instance("glm4", "glm4", biases=_QKV_BIAS, metadata={"rope.dimension_count": 8}),
    Instance("glm4-Q8_0", "glm4", kv_heads=1, tied=True, metadata={"rope.dimension_count": 8}, **_Q8),
    Instance("hunyuan", "hunyuan-dense", metadata={"rope.scaling.alpha": 50.0}),
    Instance("hunyuan-Q8_0", "hunyuan-dense", layers=2, tied=True, **_Q8),
    Instance("internlm2", "internlm2"),
    Instance("internlm2-packed-Q8_0", "internlm2", kv_heads=1, telling=_PACKED, **_Q8),
    Instance(
        "gemma4",
        "gemma4",
        layers=6,
        window=12,
        tied=True,
        rope_factors=True,
        head_dim=32,
        by_layer={"kv_heads": (2, 2, 1, 2, 2, 1), "ff": (96, 96, 96, 64, 64, 64)},
        without=((2, "attn_v"), (5, "attn_v")),
        more=("layer_output_scale",),
        metadata={
            **_swa(16),
            "attention.sliding_window_pattern": _bools(1, 1, 0, 1, 1, 0),
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
            "rope.freq_base": 1e6,
        },
    ),
    Instance(
        "gemma4-fed",
        "gemma4",
        layers=6,
        window=12,
        tied=True,
        rope_factors=True,
        head_dim=32,
        kv_heads=1,
        more=("layer_output_scale",),
        metadata={
            **_swa(16),
            "attention.sliding_window_pattern": _bools(1, 1, 1, 0, 1, 0),
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 16,
        },
    ),
    Instance(
        "gemma4-fed-Q8_0",
        "gemma4",
        layers=5,
        window=6,
        rope_factors=True,
        kv_heads=2,
        metadata={
            **_swa(32),
            "attention.sliding_window_pattern": _bools(0, 1, 0, 1, 0),
            "attention.shared_kv_layers": 2,
            "embedding_length_per_layer_input": 32,
        },
        **_Q8,
    ),
    Instance(
        "gemma4-moe",
        "gemma4",
        layers=3,
        window=12,
        tied=True,
        rope_factors=True,
        head_dim=32,
        kv_heads=1,
        fused=("ffn_gate_up_exps",),
        more=("layer_output_scale", "ffn_down_exps.scale"),
        metadata={
            **_swa(16),
            "attention.sliding_window_pattern": _bools(1, 1, 0),
            "embedding_length_per_layer_input": 0,
        },
        **_MOE,
    ),
]
