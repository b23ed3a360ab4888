"""The numbers of latent attention (DeepSeek-V2, 2024), in which all heads read one narrow vector of each position."""

from __future__ import annotations

import math
from dataclasses import replace

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgufFile
from edgerun.models.numbers import Numbers
from edgerun.models.spec import LatentNumbers, LayerNumbers, Temperature


def latent_layer(gguf: GgufFile, n: Numbers, numbers: LayerNumbers, layer: int) -> LayerNumbers:
    """A layer's numbers with those of its latent attention. What YaRN does to scores is taken out of the rotation, for
    these models scale scores by it instead, by a rule of their own. Raises FormatError."""
    rotation = numbers.rotation
    assert rotation is not None  # these families rotate in all layers
    key = n.integer("attention.key_length_mla", n.integer("attention.key_length"))
    if key <= rotation.dim:
        raise FormatError(f"{n.name('attention.key_length_mla')} is {key}, of which {rotation.dim} are rotated")
    scaling = rotation.scaling
    score_factor = scaling.attention_factor**2  # of the rotated part the rotation's tables have it, too
    if scaling.kind == "yarn" and scaling.factor > 1.0:
        # Files hold a tenth of the multiplier. With one, cosines and sines stay as they are.
        multiplier = scaling.log_multiplier or 0.1
        score_factor *= (1.0 + multiplier * math.log(scaling.factor)) ** 2
        scaling = replace(scaling, log_multiplier=1.0 if scaling.log_multiplier else 0.0)
    warmth, length = n.real("attention.temperature_scale", 0.0), n.integer("attention.temperature_length", 0, 0)
    latent = LatentNumbers(
        query_rank=0 if f"blk.{layer}.attn_q.weight" in gguf.tensors else n.integer("attention.q_lora_rank", 0, 0),
        rank=n.integer("attention.kv_lora_rank"),
        plain_dim=key - rotation.dim,
        rotated_dim=rotation.dim,
        value_dim=n.integer("attention.value_length_mla", n.integer("attention.value_length")),
        score_factor=score_factor,
        expanded=f"blk.{layer}.attn_kv_b.weight" in gguf.tensors,  # of converters until April 2025
    )
    return replace(
        numbers,
        latent=latent,
        rotation=replace(rotation, scaling=scaling),
        temperature=Temperature(warmth, length) if warmth and length else None,
    )
