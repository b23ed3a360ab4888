"""A tiny random instance of every family: the same bytes from the same name, wherever it is made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, open_gguf
from edgerun.formats.quants import quantize
from edgerun.models import load_spec
from edgerun.models.families import FAMILIES
from edgerun.models.plan import plan_of
from edgerun.models.reading import WholeModel, read_spec
from edgerun.models.spec import ModelSpec, Recurrence
from edgerun.weights.catalog import tensor_name
from tests.models.attention_instances import ATTENTION
from tests.models.instance import TOKENS, VOCAB, Instance


def _gemma(name: str, arch: str, **more: Any) -> Instance:
    return Instance(name, arch, layers=7, window=12, tied=True, **more)


_PACKED = {"attn_qkv": 1}


def _lfm2(name: str, kv_heads: tuple[int, ...], **more: Any) -> Instance:
    given = {"taps": 3, "tied": True, "layers": len(kv_heads), "by_layer": {"kv_heads": kv_heads}} | more
    if "experts" in given:
        given |= {"more": ("exp_probs_b.bias",), "metadata": {"expert_gating_func": 2} | given.get("metadata", {})}
    return Instance(name, "lfm2moe" if "experts" in given else "lfm2", **given)


def _recurrent(name: str, arch: str, recurrent: tuple[int, ...], heads: Recurrence, **more: Any) -> Instance:
    """A model of recurrences, and of attention alone where `recurrent` is 0."""
    kinds = tuple(map(bool, recurrent))
    metadata = {
        "ssm.conv_kernel": heads.taps,
        "ssm.state_size": heads.key_dim,
        "ssm.group_count": heads.key_heads,
        "ssm.time_step_rank": heads.heads,
        "ssm.inner_size": heads.inner,
        "rope.dimension_count": 8 if arch.startswith("qwen") else 16,
    } | more.pop("metadata", {})
    return Instance(name, arch, layers=len(kinds), recurrent=kinds, metadata=metadata, **more)


_SECTIONS = {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)}  # of 8 rotated dimensions: plain for text
_EXPERTS: dict[str, Any] = {"experts": 6, "used": 3, "ff_shared": 64}
_STEPS = {"attn_v": 1, "ssm_ba": 1}
_NEMOTRON: dict[str, Any] = {
    "by_layer": {"ff": (0, 96, 0, 80), "kv_heads": (0, 0, 2, 0)},
    "more": ("ssm_conv1d.bias",),
    "metadata": {"attention.layer_norm_epsilon": 1e-5},
}
_SIGMOID = {"expert_gating_func": 2}
_QKV_BIAS = ("attn_q", "attn_k", "attn_v")
PLAIN = [
    Instance("llama", "llama"),
    Instance("llama-tied-mha", "llama", kv_heads=4, tied=True),
    Instance("llama3-rope", "llama", rope_factors=True, metadata={"rope.freq_base": 500000.0}),
    Instance("llama-linear", "llama", metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    Instance(
        "llama-yarn",
        "llama",
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    Instance("mixtral", "llama", experts=4, used=2),
    Instance("qwen2", "qwen2", biases=_QKV_BIAS, metadata={"rope.freq_base": 1000000.0}),
    Instance("qwen2moe", "qwen2moe", experts=6, used=3, ff_shared=160, biases=_QKV_BIAS),
    Instance("qwen3", "qwen3", head_dim=32),
    Instance("qwen3moe", "qwen3moe", head_dim=32, experts=8, used=3),
    Instance("olmoe", "olmoe", kv_heads=4, experts=8, used=4),
    Instance("phi3", "phi3", telling=_PACKED),
    Instance(
        "phi3-longrope",
        "phi3",
        telling=_PACKED,
        long_short=True,
        metadata={"rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.19},
    ),
    _gemma("gemma2", "gemma2", metadata={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
    _gemma(
        "gemma3",
        "gemma3",
        metadata={"rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    Instance("bitnet", "bitnet", tied=True),
    _lfm2("lfm2", (0, 2, 0)),
    _recurrent("falcon-h1", "falcon-h1", (1, 1, 1), Recurrence(4, 8, 2, 12, 10), biases=("ssm_conv1d",)),
    _recurrent("qwen35", "qwen35", (1, 1, 1, 0), Recurrence(4, 4, 2, 8, 8), metadata=_SECTIONS),
    _recurrent(
        "qwen35-many",
        "qwen35",
        (1, 0, 1, 1, 0),
        Recurrence(3, 6, 2, 24, 24),
        tied=True,
        further=True,
        metadata=_SECTIONS,
    ),
    _recurrent("qwen35moe", "qwen35moe", (1, 1, 0), Recurrence(4, 4, 2, 8, 8), metadata=_SECTIONS, **_EXPERTS),
    _recurrent(
        "qwen35moe-fused",
        "qwen35moe",
        (0, 1, 1),
        Recurrence(4, 9, 3, 16, 16),
        fused=("ffn_gate_up_exps",),
        metadata=_SECTIONS,
        **_EXPERTS,
    ),
    _recurrent("qwen3next", "qwen3next", (1, 1, 0), Recurrence(4, 4, 2, 8, 8), telling=_STEPS, **_EXPERTS),
    _recurrent(
        "qwen3next-old",
        "qwen3next",
        (1, 0, 1),
        Recurrence(4, 6, 2, 16, 16),
        telling=_STEPS | {"ssm_in": 1},
        **_EXPERTS,
    ),
    _recurrent("nemotron_h", "nemotron_h", (1, 0, 0, 0), Recurrence(4, 8, 2, 12, 10), **_NEMOTRON),
    _recurrent(
        "nemotron_h_moe",
        "nemotron_h_moe",
        (0, 0, 1, 0),
        Recurrence(4, 4, 4, 16, 8),
        by_layer={"ff": (64, 0, 0, 64), "kv_heads": (0, 2, 0, 0)},
        more=("ssm_conv1d.bias", "exp_probs_b.bias"),
        ff_expert=48,
        **(_EXPERTS | {"metadata": {"attention.layer_norm_epsilon": 1e-5, "expert_weights_scale": 2.5}}),
    ),
    _recurrent(
        "nemotron_h_moe-latent",
        "nemotron_h_moe",
        (0, 1, 0),
        Recurrence(4, 6, 2, 8, 8),
        by_layer={"ff": (64, 0, 0), "kv_heads": (0, 0, 1)},
        more=("ssm_conv1d.bias", "exp_probs_b.bias"),
        **(_EXPERTS | {"metadata": {"attention.layer_norm_epsilon": 1e-5, "moe_latent_size": 32}}),
    ),
    _recurrent(
        "granitehybrid",
        "granitehybrid",
        (1, 0, 1),
        Recurrence(4, 8, 2, 12, 16),
        by_layer={"kv_heads": (0, 2, 0)},
        more=("ssm_conv1d.bias",),
        metadata={
            "rope.scaling.finetuned": False,
            "embedding_scale": 3.0,
            "residual_scale": 0.4,
            "attention.scale": 0.2,
            "logit_scale": 2.0,
        },
    ),
    _recurrent(
        "granitehybrid-moe",
        "granitehybrid",
        (1, 0),
        Recurrence(4, 16, 1, 8, 8),
        by_layer={"kv_heads": (0, 2)},
        more=("ssm_conv1d.bias",),
        **_EXPERTS,
    ),
    _lfm2("lfm2moe", (0, 2, 0, 4), experts=8, used=3, ff_expert=48, metadata={"leading_dense_block_count": 2}),
    _lfm2("lfm2moe-taps", (4, 0, 0), taps=5, tied=False, experts=4, used=2, metadata={"leading_dense_block_count": 1}),
    _lfm2("lfm2-window", (2, 0, 0, 4, 0, 1), taps=4, window=12, tied=False),
    Instance(
        "smallthinker", "smallthinker", layers=6, experts=8, used=3, window=4096, metadata={"expert_gating_func": 2}
    ),
    Instance("smallthinker-softmax", "smallthinker", layers=4, experts=8, used=3, metadata={"expert_gating_func": 1}),
]
_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
_NORM_BIASES = ("attn_norm.bias", "ffn_norm.bias", "output_norm.bias")
_UP_BIASES = ("ffn_up.bias", "ffn_down.bias")
_MULTIPLIERS = {"embedding_scale": 6.0, "residual_scale": 0.4, "attention.scale": 0.09, "logit_scale": 3.0}
_CHOICE = ("exp_probs_b.bias",)
_EXPERT_BIASES = ("ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias")
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
_DEEP = {"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_weights_scale": 1.7}
_MOE: dict[str, Any] = {"experts": 8, "used": 3, "ff_expert": 64}
OPTIONS = [  # of feed-forwards, mixtures, norms, residuals and heads
    Instance("granite", "granite", metadata=_MULTIPLIERS),
    Instance("granite-plain", "granite", tied=True, metadata={"logit_scale": 2.0}),
    Instance("granitemoe", "granitemoe", experts=8, used=3, ff_shared=64, metadata=_MULTIPLIERS),
    Instance("minicpm", "minicpm", metadata={"embedding_scale": 6.0, "residual_scale": 0.4, "logit_scale": 3.0}),
    Instance("minicpm-old", "minicpm", layers=4, tied=True),
    Instance("ernie", "ernie4_5"),
    Instance("ernie-Q8_0", "ernie4_5", GgmlType.Q8_0, tied=True),
    Instance(
        "erniemoe",
        "ernie4_5-moe",
        ff_shared=48,
        more=_CHOICE,
        metadata={"interleave_moe_layer_step": 1, "leading_dense_block_count": 1},
        **_MOE,
    ),
    Instance(
        "erniemoe-Q8_0",
        "ernie4_5-moe",
        GgmlType.Q8_0,
        layers=2,
        ff_shared=32,
        metadata={"interleave_moe_layer_step": 1},
        **_MOE,
    ),
    Instance("cohere2", "cohere2", layers=5, window=12, tied=True, metadata={**_LAYER_NORM, "logit_scale": 0.25}),
    Instance(
        "cohere2-Q8_0",
        "cohere2",
        GgmlType.Q8_0,
        layers=4,
        kv_heads=1,
        window=6,
        tied=True,
        metadata={**_LAYER_NORM, "logit_scale": 0.5},
    ),
    Instance(
        "phi2",
        "phi2",
        kv_heads=4,
        more=(*_BIASES, "attn_norm.bias", *_UP_BIASES, "output_norm.bias", "output.bias"),
        metadata={**_LAYER_NORM, "rope.dimension_count": 8},
    ),
    Instance(
        "phi2-Q8_0",
        "phi2",
        GgmlType.Q8_0,
        more=(*_BIASES, "attn_norm.bias", *_UP_BIASES, "output_norm.bias", "output.bias"),
        metadata=_LAYER_NORM,
    ),
    Instance("phimoe", "phimoe", experts=6, used=2, more=(*_BIASES, *_NORM_BIASES, "output.bias")),
    Instance(
        "phimoe-Q8_0",
        "phimoe",
        GgmlType.Q8_0,
        kv_heads=1,
        experts=4,
        used=2,
        more=(*_BIASES, *_NORM_BIASES, "output.bias"),
    ),
    Instance("starcoder2", "starcoder2", more=(*_BIASES, *_NORM_BIASES, *_UP_BIASES), metadata=_LAYER_NORM),
    Instance(
        "starcoder2-Q8_0",
        "starcoder2",
        GgmlType.Q8_0,
        tied=True,
        kv_heads=1,
        more=(*_BIASES, *_NORM_BIASES, *_UP_BIASES),
        metadata=_LAYER_NORM,
    ),
    Instance("nemotron", "nemotron", more=_NORM_BIASES, metadata={**_LAYER_NORM, "rope.dimension_count": 8}),
    Instance("nemotron-Q8_0", "nemotron", GgmlType.Q8_0, more=(*_NORM_BIASES, *_UP_BIASES), metadata=_LAYER_NORM),
    Instance("arcee", "arcee"),
    Instance("arcee-Q8_0", "arcee", GgmlType.Q8_0, tied=True, kv_heads=4),
    Instance("stablelm", "stablelm", more=_NORM_BIASES, metadata={**_LAYER_NORM, "rope.dimension_count": 4}),
    Instance("stablelm-Q8_0", "stablelm", GgmlType.Q8_0, kv_heads=4, more=_NORM_BIASES, metadata=_LAYER_NORM),
    Instance("deepseek", "deepseek", metadata=_DEEP, **_MOE),
    Instance(
        "deepseek-leading-Q8_0",
        "deepseek",
        GgmlType.Q8_0,
        layers=4,
        metadata={**_DEEP, "leading_dense_block_count": 2},
        **_MOE,
    ),
    Instance(
        "dots1",
        "dots1",
        kv_heads=4,
        more=_CHOICE,
        metadata={**_DEEP, "expert_gating_func": 2, "expert_weights_norm": True},
        **_MOE,
    ),
    Instance(
        "dots1-softmax-Q8_0", "dots1", GgmlType.Q8_0, kv_heads=4, metadata={**_DEEP, "expert_gating_func": 1}, **_MOE
    ),
    Instance("bailingmoe", "bailingmoe", metadata={**_DEEP, "leading_dense_block_count": 0}, **_MOE),
    Instance(
        "bailingmoe-Q8_0",
        "bailingmoe",
        GgmlType.Q8_0,
        metadata={"expert_shared_count": 1, "expert_weights_norm": True},
        **_MOE,
    ),
    Instance(
        "bailingmoe2",
        "bailingmoe2",
        telling=_PACKED,
        more=_CHOICE,
        metadata={
            **_DEEP,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "rope.dimension_count": 8,
        },
        **_MOE,
    ),
    Instance(
        "bailingmoe2-halves-Q8_0",
        "bailingmoe2",
        GgmlType.Q8_0,
        telling=_PACKED,
        ff_shared=32,
        metadata={**_DEEP, "expert_gating_func": 2, "expert_group_count": 2, "expert_group_used_count": 1},
        **_MOE,
    ),
    Instance(
        "minimax",
        "minimax-m2",
        experts=8,
        used=3,
        more=_CHOICE,
        metadata={"expert_gating_func": 2, "rope.dimension_count": 8},
    ),
    Instance(
        "minimax-Q8_0", "minimax-m2", GgmlType.Q8_0, experts=6, used=2, more=_CHOICE, metadata={"expert_gating_func": 2}
    ),
    Instance(
        "glm4moe",
        "glm4moe",
        more=(*_CHOICE, "attn_q.bias", "attn_k.bias", "attn_v.bias"),
        metadata={**_DEEP, "expert_weights_norm": True, "rope.dimension_count": 8},
        **_MOE,
    ),
    Instance(
        "glm4moe-b-Q8_0",
        "glm4moe",
        GgmlType.Q8_0,
        more=_CHOICE,
        metadata={**_DEEP, "expert_shared_count": 1, "expert_gating_func": 1, "rope.dimension_count": 8},
        **_MOE,
    ),
    Instance(
        "gptoss",
        "gpt-oss",
        layers=4,
        window=12,
        experts=8,
        used=3,
        more=(*_BIASES, *_EXPERT_BIASES),
        metadata={**_YARN, "rope.freq_base": 150000.0},
    ),
    Instance(
        "gptoss-MXFP4",
        "gpt-oss",
        GgmlType.MXFP4,
        layers=2,
        kv_heads=1,
        window=6,
        experts=4,
        used=2,
        more=(*_BIASES, *_EXPERT_BIASES),
    ),
    Instance("hunyuanmoe", "hunyuan-moe", experts=8, used=3, ff_shared=96),
    Instance(
        "hunyuanmoe-all-tiny-Q8_0",
        "hunyuan-moe",
        GgmlType.Q8_0,
        layers=2,
        experts=4,
        used=4,
        tied=True,
        kv_heads=1,
    ),
    Instance(
        "llama4",
        "llama4",
        layers=5,
        metadata={"interleave_moe_layer_step": 2},
        **_MOE,
    ),
    Instance(
        "llama4-of-128-few-Q8_0",
        "llama4",
        GgmlType.Q8_0,
        layers=4,
        experts=128,
        used=1,
        ff_expert=32,
        metadata={"interleave_moe_layer_step": 1},
    ),
    Instance(
        "afmoe",
        "afmoe",
        layers=5,
        window=12,
        more=_CHOICE,
        metadata={**_DEEP, "expert_weights_norm": True},
        **_MOE,
    ),
    Instance(
        "afmoe-small-short-Q8_0",
        "afmoe",
        GgmlType.Q8_0,
        layers=3,
        window=6,
        tied=True,
        more=_CHOICE,
        metadata={**_DEEP, "expert_shared_count": 1, "expert_gating_func": 2},
        experts=4,
        used=3,
        ff_expert=64,
    ),
    Instance(
        "laguna",
        "laguna",
        layers=5,
        window=12,
        by_layer={"heads": (4, 6, 6, 2, 4)},
        telling={"attn_v": 1, "attn_gate": 1},
        more=_CHOICE,
        metadata={
            **_DEEP,
            **_YARN,
            "expert_weights_norm": True,
            "rope.dimension_count": 8,
            "rope.dimension_count_swa": 16,
            "rope.freq_base_swa": 20000.0,
        },
        **_MOE,
    ),
    Instance(
        "laguna-small-Q8_0",
        "laguna",
        GgmlType.Q8_0,
        layers=2,
        telling={"attn_v": 1, "attn_gate": 4},
        ff_shared=32,
        more=_CHOICE,
        metadata={"leading_dense_block_count": 1, "expert_weights_norm": True},
        experts=4,
        used=3,
        ff_expert=64,
    ),
    Instance(
        "glm4moe-norms",
        "glm4moe",
        telling={"attn_v": 1, "attn_q_norm": 1},
        more=_CHOICE,
        metadata={**_DEEP, "rope.dimension_count": 8},
        **_MOE,
    ),
    Instance(
        "exaonemoe",
        "exaone-moe",
        layers=5,
        window=12,
        more=_CHOICE,
        metadata={**_DEEP, "expert_gating_func": 2, "expert_weights_norm": True, "expert_shared_count": 1},
        **_MOE,
    ),
    Instance(
        "exaonemoe-four-Q8_0",
        "exaone-moe",
        GgmlType.Q8_0,
        layers=4,
        window=6,
        ff_shared=32,
        metadata={"expert_gating_func": 2, "expert_weights_norm": True},
        **_MOE,
    ),
]
_LATENT: dict[str, Any] = {
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
    Instance("deepseek2", "deepseek2", layers=2, more=_CHOICE, metadata={**_DEEP, **_LATENT}, **_MOE),
    Instance(
        "deepseek2-groups",
        "deepseek2",
        heads=5,
        more=_CHOICE,
        metadata={
            **_DEEP,
            **_LATENT,
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
            **_LATENT,
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
            **_LATENT,
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
            **_LATENT,
            "expert_weights_norm": True,
            "attention.temperature_scale": 0.3,
            "attention.temperature_length": 9,
        },
        **_MOE,
    ),
    Instance(
        "mistral4-Q8_0",
        "mistral4",
        GgmlType.Q8_0,
        heads=3,
        metadata={
            **_DEEP,
            **_LATENT,
            "attention.key_length_mla": 40,
            "attention.value_length_mla": 32,
            "attention.q_lora_rank": 64,
        },
        **_MOE,
    ),
]
_WIDE: dict[str, Any] = {"d": 256, "ff": 512, "head_dim": 64}
QUANTISED = [
    Instance(f"llama-{type.name}", "llama", type, d=256, ff=512, heads=4, head_dim=64)
    for type in (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.F16, GgmlType.BF16)
] + [
    Instance("qwen3moe-small-Q4_0", "qwen3moe", GgmlType.Q4_0, d=256, ff=256, heads=4, head_dim=64, experts=8, used=3),
    Instance("olmoe-Q8_0", "olmoe", GgmlType.Q8_0, ff=96, kv_heads=4, experts=8, used=4),
    Instance("qwen2-Q4_K", "qwen2", GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64, biases=_QKV_BIAS),
    Instance("phi3-Q6_K", "phi3", GgmlType.Q6_K, telling=_PACKED, d=256, ff=512, heads=4, head_dim=64),
    _lfm2("lfm2-Q4_K", (0, 0, 2, 0), type=GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64),
    _lfm2("lfm2moe-Q4_0", (2, 0, 2), type=GgmlType.Q4_0, tied=False, experts=4, used=4, ff_expert=96),
    _lfm2("lfm2-Q8_0", (2, 0, 2), type=GgmlType.Q8_0, tied=False),
    _gemma("gemma3-Q8_0", "gemma3", type=GgmlType.Q8_0, d=256, ff=512, head_dim=64, metadata={"rope.freq_base": 1e6}),
    _recurrent(
        "qwen35-Q4_K",
        "qwen35",
        (1, 1, 0),
        Recurrence(4, 4, 2, 64, 64),
        type=GgmlType.Q4_K,
        metadata=_SECTIONS,
        **_WIDE,
    ),
    _recurrent(
        "qwen35moe-Q8_0",
        "qwen35moe",
        (1, 0, 1),
        Recurrence(4, 4, 2, 32, 32),
        type=GgmlType.Q8_0,
        metadata=_SECTIONS,
        **_EXPERTS,
    ),
    _recurrent(
        "nemotron_h-Q8_0",
        "nemotron_h",
        (1, 0, 0, 1),
        Recurrence(4, 8, 2, 16, 8),
        type=GgmlType.Q8_0,
        **(_NEMOTRON | {"by_layer": {"ff": (0, 64, 0, 0), "kv_heads": (0, 0, 1, 0)}}),
    ),
    _recurrent(
        "falcon-h1-Q8_0",
        "falcon-h1",
        (1, 1),
        Recurrence(4, 4, 1, 16, 16),
        type=GgmlType.Q8_0,
        more=("ssm_conv1d.bias", "ssm_norm"),
    ),
]
SPARSE = [  # llama.cpp has no such models: these have no golden figures
    Instance("relu", "llama", ff=96, sparse=True, biases=("ffn_gate",)),
    Instance("relu2-Q4_0", "llama", GgmlType.Q4_0, ff=96, sparse=True, metadata={"hidden_activation": "relu2"}),
    Instance("relu-Q8_0", "qwen2", GgmlType.Q8_0, ff=96, sparse=True, biases=_QKV_BIAS),
    Instance("relu-F16", "llama", GgmlType.F16, ff=96, sparse=True),
    Instance("relu-Q4_K", "llama", GgmlType.Q4_K, d=256, ff=256, head_dim=64, sparse=True, biases=("ffn_gate",)),
    Instance("relu2-Q5_1", "qwen2", GgmlType.Q5_1, ff=96, sparse=True, metadata={"hidden_activation": "relu2"}),
]
BY_LAYER = [  # nor has it families of today's with these
    Instance("llama-by-layer", "llama", by_layer={"ff": (96, 160, 64), "heads": (4, 2, 6)}),
    Instance("qwen3-by-layer", "qwen3", by_layer={"heads": (4, 8, 6), "kv_heads": (2, 4, 1)}),
    _gemma(
        "gemma3-pattern", "gemma3", metadata={"attention.sliding_window_pattern": np.array([1, 0, 0, 1, 1, 0, 1], bool)}
    ),
]
INSTANCES = {
    instance.name: instance for instance in PLAIN + OPTIONS + ATTENTION + LATENT + QUANTISED + SPARSE + BY_LAYER
}


_BY_LAYER = {"feed_forward_length": "ff", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads"}


def metadata_of(i: Instance) -> dict[str, Any]:
    """What the file says of its numbers, by keys without the architecture."""
    found: dict[str, Any] = {
        "block_count": i.layers + i.further,
        "context_length": 128,
        "embedding_length": i.d,
        "feed_forward_length": i.ff,
        "attention.head_count": i.heads,
        "attention.head_count_kv": i.kv_heads,
        "attention.key_length": i.head_dim,
        "attention.value_length": i.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": i.head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }
    for key, name in _BY_LAYER.items():
        if name in i.by_layer:
            found[key] = np.array(i.by_layer[name], np.int32)
    if i.experts:
        found |= {"expert_count": i.experts, "expert_used_count": i.used}
        found["expert_feed_forward_length"] = i.ff_expert or i.ff
    if i.ff_shared:
        found["expert_shared_feed_forward_length"] = i.ff_shared
    if i.taps:
        found["shortconv.l_cache"] = i.taps
    if i.recurrent and FAMILIES[i.arch].recurrence == "delta":
        found["attention.recurrent_layers"] = np.array([*i.recurrent, *[False] * i.further], bool)
    if i.further:
        found["nextn_predict_layers"] = 1
    if i.window:
        found["attention.sliding_window"] = i.window
    return found | i.metadata


@cache
def spec_of(i: Instance) -> ModelSpec:
    """The numbers that the file will say, enough to know its shapes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "numbers.gguf"
        with GgufWriter(path, i.arch) as w:
            for key, value in metadata_of(i).items():
                w.add(f"{i.arch}.{key}", value)
            for layer in range(i.layers):
                for part, rows in i.telling.items():
                    if (layer, part) in i.without:
                        continue
                    w.add_tensor(tensor_name(layer, part), np.zeros((rows, 1), np.float32), GgmlType.F32)
        with open_gguf(path) as gguf:
            return read_spec(gguf, WholeModel(VOCAB, i.sparse, frozenset(i.fused)))


_ORDER = (  # in which a layer's tensors are made up: files from before must not change
    *("attn_norm", "attn_output", "ffn_norm", "attn_qkv", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm"),
    *("post_attention_norm", "post_ffw_norm", "attn_sub_norm", "ffn_sub_norm", "ffn_gate_inp", "ffn_gate_exps"),
    *("ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"),
    *("ffn_up", "ffn_down_t", "ffn_down", "ffn_gate", "shortconv.in_proj", "shortconv.conv", "shortconv.out_proj"),
    *("attn_gate", "ssm_in", "ssm_ba", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_dt.bias", "ssm_a.", "ssm_norm"),
    *("ssm_d.", "ssm_out", "ffn_norm."),
)
_MEANS = {
    "ffn_gate_inp_shexp": 0.0,
    "ssm_dt.bias": 0.0,
    "ssm_a.": -0.7,
}  # of vectors; others are near 1
_FLOATS = ("ffn_gate_inp", "shortconv.conv", "ssm_conv1d", "ssm_norm")


def shapes_of(i: Instance, layer: int) -> dict[str, tuple[int, ...]]:
    """Names without layer and `.weight` -> numpy shape, of what a layer needs."""
    tensors = plan_of(spec_of(i))[layer].tensors
    needed = {part: each.shape for part, each in tensors.items() if each.needed or part in i.more}
    return {part: needed[part] for part in sorted(needed, key=_place)}


def _place(part: str) -> tuple[int, str]:
    """Where in the order a part comes: new ones at the end, by name."""
    return (_ORDER.index(part), "") if part in _ORDER else (len(_ORDER), part)


def _further(d: int) -> dict[str, tuple[int, ...]]:
    """What a layer that guesses a further token has beside an ordinary one's."""
    norms = {f"nextn.{name}": (d,) for name in ("enorm", "hnorm", "shared_head_norm")}
    return {"nextn.eh_proj": (d, 2 * d), **norms}


def tokens_of(i: Instance) -> list[int]:
    """What is fed: longer than any window."""
    return np.random.default_rng(7).integers(0, VOCAB, TOKENS).tolist()


def open_instance(name: str, directory: Path) -> tuple[GgufFile, ModelSpec]:
    """The instance's file in `directory`, written if nobody has, and its numbers."""
    path = directory / f"{name}.gguf"
    if not path.exists():
        write(INSTANCES[name], path)
    gguf = open_gguf(path)
    return gguf, load_spec(gguf)


def write(i: Instance, path: Path, vocabulary: Mapping[str, Any] | None = None) -> Path:
    """Write the instance's GGUF. `vocabulary`: metadata of a tokenizer, whose tokens are then its rows; without it
    there are VOCAB of them, and no text."""
    rng = np.random.default_rng(sum(map(ord, i.name)))
    a = i.arch
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"]) if vocabulary else VOCAB
    with GgufWriter(path, a) as w:
        w.add("general.name", i.name)
        w.add("general.file_type", 0)
        for key, value in (metadata_of(i) | i.lies).items():
            w.add(f"{a}.{key}", n_vocab if key == "vocab_size" else value)
        for key, value in (vocabulary or {"tokenizer.ggml.model": "none"}).items():
            w.add(key, value)

        def matrix(name: str, shape: tuple[int, ...], type: GgmlType, gain: float = 1.0) -> None:
            data = (rng.standard_normal(shape) * gain * shape[-1] ** -0.5).astype(np.float32)
            w.add_tensor(name, data if type == GgmlType.F32 else quantize(data, type), type)

        def vector(name: str, n: int | tuple[int, ...], mean: float) -> None:
            w.add_tensor(name, (mean + 0.1 * rng.standard_normal(n)).astype(np.float32), GgmlType.F32)

        matrix("token_embd.weight", (n_vocab, i.d), i.type, gain=1.0 if i.tied else i.d**0.5)
        vector(f"{FAMILIES[a].output_norm}.weight", i.d, 1.0)
        if not i.tied:
            matrix("output.weight", (n_vocab, i.d), i.type)
        for name in ("output_norm.bias", "output.bias"):
            if name in i.more:
                vector(name, n_vocab if name == "output.bias" else i.d, 0.0)
        fed = spec_of(i).per_layer_width
        if fed:
            matrix("per_layer_token_embd.weight", (n_vocab, i.layers * fed), i.type)
            matrix("per_layer_model_proj.weight", (i.layers * fed, i.d), GgmlType.BF16)
            vector("per_layer_proj_norm.weight", fed, 1.0)
        if i.rope_factors:
            factors = np.linspace(1.0, 8.0, i.head_dim // 2).astype(np.float32)
            w.add_tensor("rope_freqs.weight", factors, GgmlType.F32)
        if i.long_short:
            for kind, top in (("long", 8.0), ("short", 1.5)):
                factors = np.linspace(1.0, top, i.head_dim // 2).astype(np.float32)
                w.add_tensor(f"rope_factors_{kind}.weight", factors, GgmlType.F32)
        for layer in range(i.layers):
            shapes = shapes_of(i, layer)
            for part, shape in shapes.items():
                name = tensor_name(layer, part)
                if part.endswith(".bias") and len(shape) == 2:  # of experts: so large that some are cut off
                    w.add_tensor(name, (3 * rng.standard_normal(shape)).astype(np.float32), GgmlType.F32)
                elif len(shape) == 1 or part in ("ssm_a.", "ssm_d."):
                    vector(name, shape, 0.0 if part.endswith(".bias") and part not in _MEANS else _MEANS.get(part, 1.0))
                else:
                    matrix(name, shape, GgmlType.F32 if part in _FLOATS else i.type)
            for part in i.biases:
                vector(f"blk.{layer}.{part}.bias", shapes[part][0], 0.0)
        if i.further:  # made like the last layer
            for part, shape in (shapes_of(i, i.layers - 1) | _further(i.d)).items():
                data = rng.standard_normal(shape).astype(np.float32)
                w.add_tensor(tensor_name(i.layers, part), data, GgmlType.F32)
    return path
