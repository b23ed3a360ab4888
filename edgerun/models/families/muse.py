"""Muse Glimmer."""

from edgerun.models.families.family import LOCAL_BASE, LOGIT_CAP, Family

FAMILIES = {
    "muse-glimmer": Family(
        rope="norm",
        qk_norm="head",
        output_gate="sigmoid",
        post_norms=True,
        post_norm_eps=1e-8,
        normed_embedding=True,
        logits="times",
        softcaps=(0.0, 30.0),
        window_pattern=4,
        rotated="windowed",
        local_rope_plain=True,
        says=LOCAL_BASE | LOGIT_CAP,
    ),
}
