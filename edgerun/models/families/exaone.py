"""EXAONE's mixtures."""

from edgerun.models.families.family import Family

FAMILIES = {
    "exaone-moe": Family(
        rope="neox",
        qk_norm="head",
        renormalise=False,
        window_pattern=4,
        rotated="windowed",
        least_shared=1,
    ),
}
