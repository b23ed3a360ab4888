"""Instances of families some of whose layers keep a state, or the last rows of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.formats.gguf import GgmlType
from edgerun.models.spec import Recurrence
from tests.models.instances.instance import Instance


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
_WIDE: dict[str, Any] = {"d": 256, "ff": 512, "head_dim": 64}
RECURRENT = [
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
    _lfm2(
        "lfm2-window",
        (2, 0, 0, 4, 0, 1),
        taps=4,
        window=12,
        tied=False,
        metadata={"rope.freq_base_swa": 3000.0, "rope.scaling.type": "none", "rope.scaling.factor": 2.0},
    ),
    _lfm2("lfm2-Q4_K", (0, 0, 2, 0), type=GgmlType.Q4_K, d=256, ff=512, heads=4, head_dim=64),
    _lfm2("lfm2moe-Q4_0", (2, 0, 2), type=GgmlType.Q4_0, tied=False, experts=4, used=4, ff_expert=96),
    _lfm2("lfm2-Q8_0", (2, 0, 2), type=GgmlType.Q8_0, tied=False),
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
        "qwen35moe-all-Q8_0",
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
    _recurrent(
        "qwen3next-Q8_0",
        "qwen3next",
        (1, 0),
        Recurrence(4, 4, 2, 32, 32),
        type=GgmlType.Q8_0,
        telling=_STEPS,
        experts=4,
        used=4,
        ff_shared=64,
    ),
    _recurrent(
        "nemotron_h_moe-Q8_0",
        "nemotron_h_moe",
        (1, 0, 0),
        Recurrence(4, 4, 2, 16, 16),
        type=GgmlType.Q8_0,
        by_layer={"ff": (0, 0, 64), "kv_heads": (0, 2, 0)},
        more=("ssm_conv1d.bias", "exp_probs_b.bias"),
        experts=4,
        used=4,
        ff_expert=64,
        ff_shared=64,
        metadata={"attention.layer_norm_epsilon": 1e-5},
    ),
    _recurrent(
        "granitehybrid-Q8_0",
        "granitehybrid",
        (1, 0),
        Recurrence(4, 8, 2, 16, 16),
        type=GgmlType.Q8_0,
        by_layer={"kv_heads": (0, 1)},
        more=("ssm_conv1d.bias",),
        experts=4,
        used=4,
        ff_shared=64,
    ),
]
