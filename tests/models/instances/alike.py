"""Instances of families that are built like others."""

from __future__ import annotations

import numpy as np

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance

_LAYER_NORM = {"attention.layer_norm_epsilon": 1e-5}
_NORM_BIASES = ("attn_norm.bias", "ffn_norm.bias", "output_norm.bias")
_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
ALIKE = [
    Instance("exaone", "exaone", kv_heads=1, rope_factors=True),
    Instance("command-r", "command-r", tied=True, metadata={**_LAYER_NORM, "logit_scale": 0.25}),
    Instance("chatglm", "chatglm", telling={"attn_qkv": 1}, biases=("attn_qkv",), metadata={"rope.dimension_count": 8}),
    Instance("jais2", "jais2", more=(*_BIASES, *_NORM_BIASES, "ffn_up.bias", "ffn_down.bias"), metadata=_LAYER_NORM),
    Instance("orion", "orion", kv_heads=4, more=_NORM_BIASES, metadata=_LAYER_NORM),
    Instance("baichuan", "baichuan", kv_heads=4, d=32, ff=32, head_dim=8, layers=32),
    Instance("xverse", "xverse", type=GgmlType.Q8_0),
    Instance("maincoder", "maincoder", head_dim=24),
    Instance("pangu", "pangu-embedded", more=_BIASES),
    Instance(
        "spark",
        "spark2_5",
        window=9,
        layers=4,
        telling={"attn_gate": 4, "attn_v": 1},  # a number a head
        by_layer={"kv_heads": (2, 4, 1, 2)},
        metadata={
            "attention.sliding_window_pattern": np.array([True, True, False, True]),
            "rope.freq_base_swa": 3000.0,
        },
    ),
    Instance(
        "hunyuan-vl",
        "hunyuan_vl",
        metadata={"rope.scaling.alpha": 100.0, "rope.dimension_sections": np.array([4, 2, 2, 0], np.int32)},
    ),
    Instance("hunyuan-vl-Q8_0", "hunyuan_vl", GgmlType.Q8_0, head_dim=32, tied=True),
]
