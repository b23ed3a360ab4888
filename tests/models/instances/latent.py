"""Instances of latent attention."""

from __future__ import annotations

from typing import Any

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance

_CHOICE = ("exp_probs_b.bias",)
_DEEP = {"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_weights_scale": 1.7}
_MOE: dict[str, Any] = {"experts": 8, "used": 3, "ff_expert": 64}
LATENT_NUMBERS: dict[str, Any] = {
    "attention.head_count_kv": 1,
    "attention.q_lora_rank": 48,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 8,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
}
_LATENT_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
LATENT = [
    Instance("deepseek2", "deepseek2", layers=2, more=_CHOICE, metadata={**_DEEP, **LATENT_NUMBERS}, **_MOE),
    Instance(
        "deepseek2-before-2025",
        "deepseek2",
        telling={"attn_q": 96, "attn_kv_b": 128},
        layers=27,
        more=_CHOICE,
        metadata={
            **_DEEP,
            **_LATENT_YARN,
            "leading_dense_block_count": 25,
            "attention.head_count_kv": 4,
            "attention.kv_lora_rank": 32,
            "attention.key_length": 24,
            "attention.value_length": 16,
            "rope.dimension_count": 8,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        **_MOE,
    ),
    Instance(
        "deepseek2-before-2025-Q8_0",
        "deepseek2",
        GgmlType.Q8_0,
        layers=2,
        heads=3,
        telling={"attn_kv_b": 128},
        metadata={
            **_DEEP,
            "attention.head_count_kv": 3,
            "attention.q_lora_rank": 64,
            "attention.kv_lora_rank": 32,
            "attention.key_length": 40,
            "attention.value_length": 32,
            "rope.dimension_count": 8,
        },
        **_MOE,
    ),
    Instance(
        "deepseek2-groups",
        "deepseek2",
        heads=5,
        more=_CHOICE,
        metadata={
            **_DEEP,
            **LATENT_NUMBERS,
            **_LATENT_YARN,
            "attention.kv_lora_rank": 20,
            "attention.key_length": 28,
            "attention.value_length": 20,
            "attention.value_length_mla": 12,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        **_MOE,
    ),
    Instance(
        "deepseek2-lite",
        "deepseek2",
        layers=27,
        telling={"attn_q": 96},
        metadata={
            **_DEEP,
            **LATENT_NUMBERS,
            **_LATENT_YARN,
            "leading_dense_block_count": 24,
        },
        **_MOE,
    ),
    Instance(
        "deepseek2-Q8_0",
        "deepseek2",
        GgmlType.Q8_0,
        layers=2,
        metadata={
            **_DEEP,
            **LATENT_NUMBERS,
            "attention.key_length_mla": 40,
            "attention.value_length_mla": 32,
            "attention.q_lora_rank": 64,
        },
        **_MOE,
    ),
    Instance(
        "mistral4",
        "mistral4",
        layers=2,
        metadata={
            **_DEEP,
            **LATENT_NUMBERS,
            "expert_weights_norm": True,
            "attention.temperature_scale": 0.3,
            "attention.temperature_length": 9,
        },
        **_MOE,
    ),
    Instance(
        "mistral4-all-Q8_0",
        "mistral4",
        GgmlType.Q8_0,
        heads=3,
        metadata={
            **_DEEP,
            **LATENT_NUMBERS,
            "attention.key_length_mla": 40,
            "attention.value_length_mla": 32,
            "attention.q_lora_rank": 64,
        },
        **_MOE,
    ),
]
