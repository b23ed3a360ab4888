"""MiniMax M2."""

from edgerun.models.families.family import Family

FAMILIES = {
    "minimax-m2": Family(rope="neox", qk_norm="full", expert_length=False, says=frozenset({"expert_gating_func"}))
}
