"""Gemma 1 to 4."""

from edgerun.models.families.family import VISION, Family

_SPARE = {
    r"blk\.(0|[1-9][0-9]*)\.attn_(k|v|k_norm)\.weight": "keys and values of layers that read those of others",
}

FAMILIES = {
    "gemma": Family(rope="neox", activation="gelu", scaled_embedding=True),
    "gemma2": Family(
        rope="neox",
        activation="gelu",
        post_norms=True,
        scaled_embedding=True,
        window_pattern=2,
        softcaps=(50.0, 30.0),
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
    "gemma3n": Family(
        rope="neox",
        activation="gelu",
        qk_norm="head",
        v_norm=True,
        shares_kv=True,
        own_kv=20,
        score_scale=1.0,
        softcaps=(0.0, 30.0),
        post_norms=True,
        scaled_embedding=True,
        per_layer_inputs=True,
        streams=4,
        laurel_rank=64,
        sparse_gates=10,
        window_pattern=5,
        local_rope_base=10000.0,
        local_rope_plain=True,
        unused={**VISION, **_SPARE},
    ),
    "gemma4": Family(
        rope="neox",
        activation="gelu",
        qk_norm="head",
        v_norm=True,
        v_from_k=True,
        shares_kv=True,
        score_scale=1.0,
        softcaps=(0.0, 30.0),
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
