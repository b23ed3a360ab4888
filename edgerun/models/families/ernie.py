"""ERNIE 4.5."""

from edgerun.models.families.family import Family

FAMILIES = {"ernie4_5": Family(rope="norm"), "ernie4_5-moe": Family(rope="norm")}
