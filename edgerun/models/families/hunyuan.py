"""Hunyuan."""

from edgerun.models.families.family import Family

FAMILIES = {
    "hunyuan-dense": Family(rope="neox", qk_norm="head", qk_norm_after=True, rope_alpha=True, no_mixture_up_to=1),
    "hunyuan-moe": Family(rope="neox", qk_norm="head", qk_norm_after=True, expert_length=False, least_shared=1),
}
