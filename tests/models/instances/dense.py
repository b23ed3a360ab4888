"""Instances of families that differ in norms, biases, factors and ungated feed-forwards."""

from __future__ import annotations

from typing import Any

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance

_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
_NORM_BIASES = ("attn_norm.bias", "ffn_norm.bias", "output_norm.bias")
_UP_BIASES = ("ffn_up.bias", "ffn_down.bias")
_MULTIPLIERS = {"embedding_scale": 6.0, "residual_scale": 0.4, "attention.scale": 0.09, "logit_scale": 3.0}
_CHOICE = ("exp_probs_b.bias",)
_DEEP = {"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_weights_scale": 1.7}
_MOE: dict[str, Any] = {"experts": 8, "used": 3, "ff_expert": 64}
DENSE = [
    Instance("granite", "granite", metadata=_MULTIPLIERS),
    Instance("granite-plain", "granite", tied=True, metadata={"logit_scale": 2.0}),
    Instance("granitemoe", "granitemoe", experts=8, used=3, ff_shared=64, metadata=_MULTIPLIERS),
    Instance("minicpm", "minicpm", metadata={"embedding_scale": 6.0, "residual_scale": 0.4, "logit_scale": 3.0}),
    Instance("minicpm-old", "minicpm", layers=4, tied=True),
    Instance("ernie", "ernie4_5"),
    Instance("ernie-Q8_0", "ernie4_5", GgmlType.Q8_0, tied=True),
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
]
