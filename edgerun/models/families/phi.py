"""Phi-3 and Phi-4."""

from edgerun.models.families.family import Family

FAMILIES = {"phi3": Family(rope="neox", fused_gate_up=True)}
