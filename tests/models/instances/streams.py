"""Instances of families whose residual is several streams: llama.cpp has four of them in mind, layers that are fed 256
columns beside, a rank of 64 and at least twenty layers with keys and values of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance


def _gemma3n(name: str, layers: int, **more: Any) -> Instance:
    metadata = {
        "attention.shared_kv_layers": layers - 20,
        "embedding_length_per_layer_input": 256,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 10000.0,
    } | more.pop("metadata", {})
    means = dict.fromkeys(("post_attention_norm", "post_ffw_norm", "laurel_post_norm", "post_norm"), 0.2)
    given = {"window": 12, "tied": True, "spare_kv": True, "means": means, "metadata": metadata} | more
    return Instance(name, "gemma3n", layers=layers, **given)


STREAMS = [
    _gemma3n("gemma3n", 25, d=32, ff=512, head_dim=8),
    _gemma3n(
        "gemma3n-some-silent",  # of the width that layers are fed, too: llama.cpp knows of 256 only
        22,
        unsaid=("embedding_length_per_layer_input",),
        d=48,
        ff=384,
        heads=3,
        kv_heads=1,
        metadata={
            "activation_sparsity_scale": np.array([1.644854] * 10 + [-np.inf] * 12, np.float32),
            "rope.freq_base_swa": 5000.0,
        },
    ),
    _gemma3n("gemma3n-Q8_0", 25, type=GgmlType.Q8_0, d=64, ff=512),
]
