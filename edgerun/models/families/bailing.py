"""Ling and Ring."""

from edgerun.models.families.family import MIXTURE, Family

FAMILIES = {
    "bailingmoe": Family(rope="norm", renormalise=False, says=MIXTURE - {"expert_gating_func"}),
    "bailingmoe2": Family(rope="neox", qk_norm="head", renormalise=False, shared_times_count=True, says=MIXTURE),
}
