"""BitNet b1.58."""

from edgerun.models.families.family import Family

FAMILIES = {"bitnet": Family(rope="neox", sub_norms=True)}
