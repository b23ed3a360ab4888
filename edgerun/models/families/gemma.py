"""Gemma 2 and 3."""

from edgerun.models.families.family import VISION, Family

FAMILIES = {
    "gemma2": Family(
        rope="neox",
        activation="gelu",
        post_norms=True,
        scaled_embedding=True,
        window_pattern=2,
        wide_scale_layers=46,
    ),
    "gemma3": Family(
        rope="neox",
        activation="gelu",
        qk_norm="head",
        post_norms=True,
        scaled_embedding=True,
        window_pattern=6,
        local_rope_base=10000.0,
        local_rope_plain=True,
        wide_scale_layers=62,
        unused=VISION,
    ),
}
