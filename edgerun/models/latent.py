"""The numbers of latent attention (DeepSeek-V2, 2024), in which all heads read one narrow vector of each position."""

from __future__ import annotations

import math
from dataclasses import replace

from edgerun.errors import FormatError
from edgerun.models.numbers import Numbers
from edgerun.models.spec import LatentNumbers, Rotation


def latent_of(n: Numbers, rotation: Rotation) -> tuple[LatentNumbers, Rotation]:
    """What the metadata say, and the rotation with what YaRN does to scores taken out of it: these models scale scores
    by it instead, by a rule of their own. Raises FormatError."""
    key = n.integer("attention.key_length_mla", n.integer("attention.key_length"))
    latent = LatentNumbers(
        query_rank=n.integer("attention.q_lora_rank", 0, 0),
        rank=n.integer("attention.kv_lora_rank"),
        plain_dim=key - rotation.dim,
        rotated_dim=rotation.dim,
        value_dim=n.integer("attention.value_length_mla", n.integer("attention.value_length")),
        score_factor=1.0,
    )
    if latent.plain_dim < 1:
        raise FormatError(f"{n.name('attention.key_length_mla')} is {key}, of which {rotation.dim} are rotated")
    scaling = rotation.scaling
    if scaling.kind != "yarn" or scaling.factor <= 1.0:
        return latent, rotation
    multiplier = n.real("rope.scaling.yarn_log_multiplier", 0.0)
    squeezed = 1.0 + 0.1 * math.log(scaling.factor)  # what `rope.frequencies` multiplies cosines and sines by
    magnitude = 1.0 + multiplier * math.log(scaling.factor) if multiplier else squeezed  # files hold a tenth of it
    if not 0.0 < magnitude < 100.0:
        raise FormatError(f"impossible numbers: {n.name('rope.scaling.yarn_log_multiplier')} {multiplier}")
    mine = replace(scaling, attention_factor=1.0 / squeezed if multiplier else 1.0)
    return replace(latent, score_factor=magnitude**2), replace(rotation, scaling=mine)
