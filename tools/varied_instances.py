"""Instances of tests/models with other numbers, at random: for `vary_families.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

TYPES = ("F32", "F32", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4")
MIXED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
MIXED += ("IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0")
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
OPTIONS: tuple[dict[str, Any], ...] = (  # of metadata: what any family's file may say
    {"rope.freq_base": 50000.0},
    {"rope.freq_base_swa": 3000.0},
    {"attention.layer_norm_rms_epsilon": 1e-3},
    {"attention.layer_norm_epsilon": 1e-3},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    {"rope.scaling.type": "none", "rope.scaling.factor": 2.0},
    {"rope.scale_linear": 2.0},
    _YARN,
    {**_YARN, "rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0},
    {**_YARN, "rope.scaling.yarn_log_multiplier": 0.1},
    {"rope.scaling.yarn_log_multiplier": 0.0707},
    {"rope.scaling.attn_factor": 1.3},
    {"rope.scaling.finetuned": False},
    {"rope.scaling.finetuned": True},
    {"rope.scaling.alpha": 100.0},
    {"logit_scale": 0.5},
    {"final_logit_softcapping": 20.0},
    {"attn_logit_softcapping": 5.0},
    {"attention.scale": 0.3},
    {"embedding_scale": 3.0},
    {"residual_scale": 0.5},
    {"expert_weights_scale": 1.5},
    {"expert_weights_norm": True},
    {"expert_weights_norm": False},
    {"expert_gating_func": 1},
    {"expert_gating_func": 2},
    {"rope.dimension_count": 8},
    {"attention.temperature_scale": 0.2},
    {"attention.temperature_scale": 0.2, "attention.temperature_length": 16},
    {"attention.sliding_window": 0},
    {"attention.sliding_window": 20},
    {"attention.sliding_window_pattern": 2},
    {"attention.sliding_window_pattern": 0},
    {"full_attention_interval": 2},
    {"leading_dense_block_count": 0},
    {"leading_dense_block_count": 2},
    {"interleave_moe_layer_step": 2},
    {"expert_shared_count": 1},
    {"expert_group_count": 2, "expert_group_used_count": 1},
    {"expert_group_count": 4, "expert_group_used_count": 3},
)
_USUAL = (
    "rope.dimension_count",
    "rope.dimension_sections",
    "attention.key_length",
)  # keys that tell of widths of heads


def varied(base: Any, rng: np.random.Generator) -> Any:
    """`base` with other numbers. Raises ValueError where they do not go together."""
    from edgerun.formats.gguf import GgmlType
    from tests.models.instances import metadata_of

    changes: dict[str, Any] = {"name": f"{base.name}~{rng.integers(1 << 30)}"}
    if rng.random() < 0.7:
        changes["type"] = GgmlType[str(rng.choice(TYPES))]
    if rng.random() < 0.25:
        changes["type"] = GgmlType.Q8_0
        changes["mixed"] = tuple(GgmlType[str(name)] for name in rng.choice(MIXED, 4, replace=False))
    if rng.random() < 0.5:
        changes["d"] = int(rng.choice([64, 128, 256]))
    if rng.random() < 0.5 and "ff" not in base.by_layer:
        changes["ff"] = int(rng.choice([32, 64, 96, 160, 256]))
    if rng.random() < 0.5 and not {"heads", "kv_heads"} & set(base.by_layer) and base.heads % 4 == 0:
        changes["heads"] = int(rng.choice([2, 4, 6, 8]))
        changes["kv_heads"] = int(rng.choice([n for n in (1, 2, 3, 4, 6, 8) if changes["heads"] % n == 0]))
    if rng.random() < 0.3 and not (base.by_layer or base.recurrent or base.without or base.layers > 6):
        changes["layers"] = int(rng.choice([2, 5, 6, 9]))
    if rng.random() < 0.4 and 0 < base.window < 4096:  # llama.cpp gives every SmallThinker one of 4096
        changes["window"] = int(rng.integers(2, 60))
    if rng.random() < 0.5 and base.experts:
        changes["experts"] = int(rng.choice([4, 8, 12, 16]))
        changes["used"] = int(rng.integers(1, 1 + min(6, changes["experts"])))
    if rng.random() < 0.3 and base.ff_expert:
        changes["ff_expert"] = int(rng.choice([32, 64, 96, 128]))
    if rng.random() < 0.3 and base.ff_shared:
        changes["ff_shared"] = int(rng.choice([32, 64, 96]))
    if rng.random() < 0.15:
        changes["tied"] = not base.tied
    if (
        rng.random() < 0.25
        and not (base.by_layer or base.recurrent)
        and not any(key in base.metadata for key in _USUAL)
    ):
        changes["head_dim"] = int(rng.choice([8, 32, 64]))
    if rng.random() < 0.3 and base.more:
        left = rng.random(len(base.more)) < 0.6
        changes["more"] = tuple(part for part, stays in zip(base.more, left, strict=True) if stays)
    if rng.random() < 0.1:
        changes["biases"] = tuple(rng.choice(["attn_q", "attn_k", "attn_v", "attn_output"], 2, replace=False).tolist())
    if rng.random() < 0.1:
        changes["rope_factors"] = not base.rope_factors
    if rng.random() < 0.1:
        changes["telling"] = {"attn_qkv": 1}
    if rng.random() < 0.2 and not base.further and "block_count" not in base.metadata:
        changes["further"] = True
    if rng.random() < 0.3:
        changes["unsaid"] = (str(rng.choice(sorted(metadata_of(base)))),)
    said = dict(base.metadata) | _recurrence(base, rng) | _latent(base, rng)
    if base.taps and rng.random() < 0.4:
        changes["taps"] = int(rng.integers(2, 7))
    for value in OPTIONS:
        if rng.random() < 0.06:
            said |= value
    changes["metadata"] = said
    i = replace(base, **changes)
    widths = [i.d, i.ff, i.heads * i.head_dim, i.ff_expert or i.ff, i.ff_shared or i.ff]
    if not i.mixed and any(width % i.type.block_size for width in widths):
        i = replace(i, type=GgmlType.F32)
    return i


def retyped(base: Any, rng: np.random.Generator) -> Any:
    """`base` with another type of weights, or several, where its columns are whole blocks."""
    from edgerun.formats.gguf import GgmlType

    mixed = tuple(GgmlType[str(name)] for name in rng.choice(MIXED, 4, replace=False))
    return replace(base, name=f"{base.name}~{rng.integers(1 << 30)}", type=GgmlType.Q8_0, mixed=(GgmlType.Q8_0, *mixed))


def _recurrence(base: Any, rng: np.random.Generator) -> dict[str, int]:
    """Metadata of a recurrence with other numbers of heads and dimensions."""
    from edgerun.models import FAMILIES

    if not base.recurrent or rng.random() < 0.4:
        return {}
    groups, per_group, dim = int(rng.choice([1, 2, 3])), int(rng.choice([1, 2, 3])), int(rng.choice([8, 16, 24, 32]))
    state = dim if FAMILIES[base.arch].recurrence == "delta" else int(rng.choice([4, 8, 16, 20]))
    return {
        "ssm.conv_kernel": int(rng.integers(2, 7)),
        "ssm.group_count": groups,
        "ssm.time_step_rank": groups * per_group,
        "ssm.state_size": state,
        "ssm.inner_size": groups * per_group * dim,
    }


def _latent(base: Any, rng: np.random.Generator) -> dict[str, int]:
    """Metadata of latent attention with other widths."""
    if "attention.key_length_mla" not in base.metadata or rng.random() < 0.4:
        return {}
    rank, turned, plain = (int(rng.choice(each)) for each in ([16, 32, 64], [4, 8, 16], [8, 16, 32]))
    return {
        "attention.q_lora_rank": int(rng.choice([32, 64])),
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": turned,
        "attention.key_length": rank + turned,
        "attention.value_length": rank,
        "attention.key_length_mla": plain + turned,
        "attention.value_length_mla": int(rng.choice([8, 16, 24])),
    }


def described(i: Any, base: Any) -> dict[str, Any]:
    """What `i` has that `base` has not, for a line."""
    changed = {
        key: value
        for key, value in vars(i).items()
        if key not in ("name", "metadata", "mixed", "type") and value is not getattr(base, key)
    }
    more = {key: value for key, value in i.metadata.items() if base.metadata.get(key) is not value}
    changed |= {"type": "/".join(type.name for type in i.mixed) if i.mixed else i.type.name}
    return changed | ({"says": more} if more else {})
