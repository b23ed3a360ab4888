"""Instances of llama and those nearest to it, in floats and quantised; of what llama.cpp does not have, too."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance


def _gemma(name: str, arch: str, **more: Any) -> Instance:
    return Instance(name, arch, layers=7, window=12, tied=True, **more)


_PACKED = {"attn_qkv": 1}
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
    Instance(
        "smallthinker", "smallthinker", layers=6, experts=8, used=3, window=4096, metadata={"expert_gating_func": 2}
    ),
    Instance("smallthinker-softmax", "smallthinker", layers=4, experts=8, used=3, metadata={"expert_gating_func": 1}),
]
QUANTISED = [
    Instance(f"llama-{type.name}", "llama", type, d=256, ff=512, heads=4, head_dim=64)
    for type in (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.F16, GgmlType.BF16)
] + [
    Instance("qwen3moe-small-Q4_0", "qwen3moe", GgmlType.Q4_0, d=256, ff=256, heads=4, head_dim=64, experts=8, used=3),
    Instance("olmoe-Q8_0", "olmoe", GgmlType.Q8_0, ff=96, kv_heads=4, experts=8, used=4),
    Instance("qwen2-Q4_K", "qwen2", GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64, biases=_QKV_BIAS),
    Instance("phi3-Q6_K", "phi3", GgmlType.Q6_K, telling=_PACKED, d=256, ff=512, heads=4, head_dim=64),
    _gemma("gemma3-Q8_0", "gemma3", type=GgmlType.Q8_0, d=256, ff=512, head_dim=64, metadata={"rope.freq_base": 1e6}),
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
