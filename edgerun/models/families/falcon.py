"""Falcon-H1: attention and Mamba-2 side by side."""

from edgerun.models.families.family import Family

FAMILIES = {"falcon-h1": Family(rope="neox", ffn_norm="ffn_norm.", recurrence="mamba", mixers_beside=True)}
