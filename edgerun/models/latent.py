"""The numbers of latent attention (DeepSeek-V2, 2024), in which all heads read one narrow vector of each position."""

from __future__ import annotations

import math
from dataclasses import replace

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgufFile
from edgerun.models.families import Family
from edgerun.models.numbers import Numbers
from edgerun.models.spec import LatentNumbers, LayerNumbers, RopeScaling, Temperature


def latent_layer(gguf: GgufFile, n: Numbers, family: Family, numbers: LayerNumbers, layer: int) -> LayerNumbers:
    """A layer's numbers with those of its latent attention. What YaRN does to scores is taken out of the rotation, for
    these models scale scores by it instead, by a rule of their own. Raises FormatError."""
    rotation = numbers.rotation
    assert rotation is not None  # these families rotate in all layers
    key = n.integer("attention.key_length_mla", numbers.head_dim_k)
    if key <= rotation.dim:
        raise FormatError(f"{n.name('attention.key_length_mla')} is {key}, of which {rotation.dim} are rotated")
    scaling, score_factor = _score_factor(rotation.scaling, family)
    warmth, length = n.real("attention.temperature_scale", 0.0), n.integer("attention.temperature_length", 0, 0)
    latent = LatentNumbers(
        query_rank=0 if f"blk.{layer}.attn_q.weight" in gguf.tensors else n.integer("attention.q_lora_rank", 0, 0),
        rank=n.integer("attention.kv_lora_rank"),
        plain_dim=key - rotation.dim,
        rotated_dim=rotation.dim,
        value_dim=n.integer("attention.value_length_mla", numbers.head_dim_v),
        score_factor=score_factor,
        expanded=f"blk.{layer}.attn_kv_b.weight" in gguf.tensors,  # of converters until April 2025
    )
    return replace(
        numbers,
        latent=latent,
        rotation=replace(rotation, scaling=scaling),
        temperature=Temperature(warmth, length) if warmth and length else None,
    )


def _score_factor(scaling: RopeScaling, family: Family) -> tuple[RopeScaling, float]:
    """How the rotated part is scaled, and what scores are multiplied by for it. Files hold a tenth of the multiplier.

    As llama.cpp has it, for whose sake files say what they do: without YaRN scores grow by its rule all the same."""

    def grown(slope: float) -> float:
        return 1.0 + 0.1 * slope * math.log(scaling.factor)

    slope = 10.0 * scaling.log_multiplier
    turned = scaling.attention_factor**2  # the rotation's tables have it, too
    if scaling.kind == "linear":
        return scaling, turned * (grown(1.0) * grown(slope)) ** 2
    if scaling.kind != "yarn" or scaling.factor <= 1.0:
        return scaling, turned
    if slope == 0.0:
        return scaling, turned * grown(1.0) ** 2
    if family.latent_rotation_grows:  # by 1 / slope, and scores by slope
        return replace(scaling, log_multiplier=slope), turned * grown(1.0) ** 2
    return replace(scaling, log_multiplier=1.0), turned * grown(slope) ** 2
