"""The shapes of real models, for files of random weights: what `random_model.py` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType


@dataclass(frozen=True)
class Shape:
    """metadata: under the architecture's name. is_tied: whether the head is the embedding. more: ends of tensors' names
    that files of it have, though edgerun could do without. without: names of those that they lack. fused: the tensors
    that hold gate and up. experts: their type, whatever the rest is."""

    architecture: str
    vocabulary: int
    metadata: Mapping[str, Any]
    is_tied: bool = False
    more: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    experts: GgmlType | None = None

    def of_layers(self, layers: int) -> dict[str, Any]:
        """The metadata of the first layers; 0: all."""
        count = self.metadata["block_count"]
        cut = layers or count
        return {
            key: value[:cut] if isinstance(value, np.ndarray) and len(value) == count else value
            for key, value in self.metadata.items()
        } | {"block_count": cut}


_QWEN35 = {
    "context_length": 262144,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": 64,
    "rope.dimension_sections": np.array([11, 11, 10, 0], np.int32),
    "rope.freq_base": 1e7,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 128,
    "ssm.group_count": 16,
    "ssm.time_step_rank": 32,
    "ssm.inner_size": 4096,
    "full_attention_interval": 4,
    "attention.head_count": 16,
}
_GEMMA4_FULL = [(layer + 1) % 6 == 0 for layer in range(30)]  # the others have a window
_BIASES = tuple(f"attn_{part}.bias" for part in ("q", "k", "v", "output"))
_EXPERT_BIASES = tuple(f"ffn_{part}.bias" for part in ("gate_inp", "gate_exps", "up_exps", "down_exps"))
SHAPES = {
    "llama-7b": Shape(
        "llama",
        32000,
        metadata={
            "block_count": 32,
            "context_length": 4096,
            "embedding_length": 4096,
            "feed_forward_length": 11008,
            "attention.head_count": 32,
            "attention.head_count_kv": 32,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
        },
    ),
    "qwen3-30b-a3b": Shape(
        "qwen3moe",
        151936,
        metadata={
            "block_count": 48,
            "context_length": 40960,
            "embedding_length": 2048,
            "feed_forward_length": 6144,
            "attention.head_count": 32,
            "attention.head_count_kv": 4,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 1e6,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
        },
    ),
    "olmoe-1b-7b": Shape(
        "olmoe",
        50304,
        metadata={
            "block_count": 16,
            "context_length": 4096,
            "embedding_length": 2048,
            "feed_forward_length": 1024,
            "attention.head_count": 16,
            "attention.head_count_kv": 16,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 10000.0,
            "expert_count": 64,
            "expert_used_count": 8,
        },
    ),
    "qwen3.5-4b": Shape(
        "qwen35",
        248320,
        is_tied=True,
        metadata=_QWEN35
        | {"block_count": 32, "embedding_length": 2560, "feed_forward_length": 9216, "attention.head_count_kv": 4},
    ),
    "qwen3.6-35b-a3b": Shape(
        "qwen35moe",
        248320,
        metadata=_QWEN35
        | {
            "block_count": 40,
            "embedding_length": 2048,
            "attention.head_count_kv": 2,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
        },
    ),
    "glm-4.7-flash": Shape(
        "deepseek2",
        154880,
        metadata={
            "block_count": 47,
            "context_length": 202752,
            "embedding_length": 2048,
            "feed_forward_length": 10240,
            "attention.head_count": 20,
            "attention.head_count_kv": 1,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.q_lora_rank": 768,
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "rope.dimension_count": 64,
            "rope.freq_base": 1e6,
            "leading_dense_block_count": 1,
            "expert_count": 64,
            "expert_used_count": 4,
            "expert_feed_forward_length": 1536,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.8,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        },
        more=("exp_probs_b.bias",),
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss",
        201088,
        metadata={
            "block_count": 24,
            "context_length": 131072,
            "embedding_length": 2880,
            "feed_forward_length": 2880,
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 128,
            "rope.dimension_count": 64,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 2880,
        },
        more=(*_BIASES, *_EXPERT_BIASES),
        experts=GgmlType.MXFP4,
    ),
    "lfm2-8b-a1b": Shape(
        "lfm2moe",
        65536,
        is_tied=True,
        metadata={
            "block_count": 24,
            "context_length": 128000,
            "embedding_length": 2048,
            "feed_forward_length": 7168,
            "attention.head_count": 32,
            "attention.head_count_kv": np.array(
                [0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 8, 0, 0], np.int32
            ),
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 1e6,
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 2,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 1792,
            "expert_gating_func": 2,
        },
        more=("exp_probs_b.bias",),
    ),
    "gemma4-26b-a4b": Shape(
        "gemma4",
        262144,
        is_tied=True,
        metadata={
            "block_count": 30,
            "context_length": 262144,
            "embedding_length": 2816,
            "feed_forward_length": 2112,
            "attention.head_count": 16,
            "attention.head_count_kv": np.array([2 if full else 8 for full in _GEMMA4_FULL], np.int32),
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": np.array([not full for full in _GEMMA4_FULL]),
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 10000.0,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 704,
        },
        more=("rope_freqs.weight", "layer_output_scale.weight", "ffn_down_exps.scale"),
        without=tuple(f"blk.{layer}.attn_v.weight" for layer, full in enumerate(_GEMMA4_FULL) if full),
        fused=("ffn_gate_up_exps",),
    ),
}
