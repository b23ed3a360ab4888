"""OLMoE, OLMo 2 and 3."""

from edgerun.models.families.family import Family

FAMILIES = {
    "olmoe": Family(rope="neox", qk_norm="full", renormalise=False),
    "olmo2": Family(  # and OLMo 3, which has windows
        rope="neox",
        qk_norm="full",
        pre_norms=False,
        post_norms=True,
        window_pattern=4,
        default_window=0,
        local_rope_plain=True,
        plain_local_factor=True,
    ),
}
