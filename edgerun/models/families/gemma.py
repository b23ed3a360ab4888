"""Gemma 1 to 4."""

from edgerun.models.families.family import VISION, Family

FAMILIES = {
    "gemma": Family(rope="neox", activation="gelu", scaled_embedding=True),
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
    "gemma4": Family(
        rope="neox",
        activation="gelu",
        qk_norm="head",
        v_norm=True,
        v_from_k=True,
        shares_kv=True,
        score_scale=1.0,
        post_norms=True,
        scaled_embedding=True,
        dense_beside=True,
        per_layer_inputs=True,
        window_pattern=1,  # the file says which layers have one
        local_rope_base=10000.0,
        local_rope_plain=True,
        unused=VISION,
    ),
}
