"""InternLM 2 and 3."""

from edgerun.models.families.family import Family

FAMILIES = {"internlm2": Family(rope="norm")}
