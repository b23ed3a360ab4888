"""Instances whose files say what few do, lack what most have, or say what means nothing in their family; and families
that are others but for that."""

from __future__ import annotations

import numpy as np

from edgerun.formats.gguf import GgmlType
from tests.models.instances.instance import Instance
from tests.models.instances.latent import LATENT_NUMBERS

_MEANINGLESS = {  # in a qwen3moe
    "expert_weights_scale": 1.5,
    "expert_weights_norm": False,
    "expert_gating_func": 2,
    "attention.scale": 0.3,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 2.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_log_multiplier": 0.5,
    "rope.scaling.yarn_beta_fast": 4.0,
}
SAID = [
    Instance("qwen3moe-says-much", "qwen3moe", experts=8, used=2, ff_expert=64, layers=2, metadata=_MEANINGLESS),
    Instance(
        "granite-unrotated",
        "granite",
        layers=2,
        rope_factors=True,  # which nothing is done with, then
        metadata={"logit_scale": 2.0, "rope.scaling.finetuned": False},
    ),
    Instance(
        "glm4-sections",
        "glm4",
        layers=2,
        metadata={"rope.dimension_count": 8, "rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)},
    ),
    Instance(
        "muse-factor",
        "muse-glimmer",
        window=9,
        layers=4,
        metadata={
            "logit_scale": 0.25,
            "rope.scaling.attn_factor": 1.3,
            "attention.sliding_window_pattern": np.array([1, 0, 1, 1], np.int32),  # truths as integers
        },
    ),
    Instance(
        "deepseek2-factor",  # of a file that does not say how wide the cache of what all heads read is, either
        "deepseek2",
        unsaid=("attention.key_length", "attention.value_length"),
        layers=2,
        experts=8,
        used=3,
        ff_expert=64,
        metadata={
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            **LATENT_NUMBERS,
            "rope.scaling.attn_factor": 1.3,
        },
    ),
    Instance(
        "nemotron-h-one-epsilon",
        "nemotron_h",
        GgmlType.F32,
        layers=2,
        by_layer={"kv_heads": (0, 2), "ff": (0, 0)},
        unsaid=("attention.layer_norm_rms_epsilon",),
        metadata={
            "attention.layer_norm_epsilon": 0.05,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.group_count": 2,
            "ssm.time_step_rank": 4,
            "ssm.inner_size": 64,
        },
        more=("ssm_conv1d.bias",),
    ),
    Instance(
        "mellum",
        "mellum",
        layers=4,
        experts=8,
        used=2,
        ff_expert=64,
        window=9,
        metadata={
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.2,
        },
    ),
    Instance(
        "paddleocr",
        "paddleocr",
        layers=2,
        metadata={"rope.dimension_sections": np.array([3, 3, 2, 0], np.int32)},
    ),
    Instance("hunyuan-one-expert", "hunyuan-dense", layers=2, lies={"expert_count": 1, "expert_used_count": 1}),
    Instance(
        "llama-scaling-none",
        "llama",
        layers=2,
        metadata={"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    ),
    Instance(  # every fourth layer is not rotated, whichever layers have windows
        "llama4-every-second",
        "llama4",
        layers=5,
        experts=8,
        used=3,
        ff_expert=64,
        metadata={
            "interleave_moe_layer_step": 2,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
        },
    ),
    Instance(  # whose window is 4096, whatever the file says; layers with one are scaled, though the file says: none
        "smallthinker-every-third",
        "smallthinker",
        layers=6,
        experts=8,
        used=3,
        window=20,
        metadata={
            "expert_gating_func": 2,
            "attention.sliding_window_pattern": 3,
            "rope.scaling.type": "none",
            "rope.scaling.factor": 2.0,
        },
    ),
    *(
        Instance(
            name,
            arch,
            layers=2,
            experts=8,
            used=3,
            ff_expert=64,
            metadata={"leading_dense_block_count": 1, "expert_shared_count": 2, **LATENT_NUMBERS, **scaled},
        )
        for name, arch, scaled in (
            ("deepseek2-linear", "deepseek2", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}),
            (
                "mistral4-slope",
                "mistral4",
                {
                    "rope.scaling.type": "yarn",
                    "rope.scaling.factor": 4.0,
                    "rope.scaling.original_context_length": 16,
                    "rope.scaling.yarn_log_multiplier": 0.0707,
                },
            ),
        )
    ),
]
