"""OLMoE."""

from edgerun.models.families.family import Family

FAMILIES = {"olmoe": Family(rope="neox", qk_norm="full", renormalise=False)}
