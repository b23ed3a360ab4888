"""Hunyuan, and the part of HunyuanOCR that reads and writes text."""

from dataclasses import replace

from edgerun.models.families.family import Family

_DENSE = Family(rope="neox", qk_norm="head", qk_norm_after=True, rope_alpha=True, no_mixture_up_to=1)
FAMILIES = {
    "hunyuan-dense": _DENSE,
    "hunyuan_vl": replace(_DENSE, sections="by_file"),
    "hunyuan-moe": Family(rope="neox", qk_norm="head", qk_norm_after=True, expert_length=False, least_shared=1),
}
