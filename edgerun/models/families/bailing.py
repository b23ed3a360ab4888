"""Ling and Ring."""

from edgerun.models.families.family import Family

FAMILIES = {
    "bailingmoe": Family(rope="norm", renormalise=False),
    "bailingmoe2": Family(rope="neox", qk_norm="head", renormalise=False, shared_times_count=True),
}
