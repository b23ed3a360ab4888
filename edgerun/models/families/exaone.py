"""EXAONE 3 and 4, dense and with experts."""

from edgerun.models.families.family import MIXTURE, Family

FAMILIES = {
    "exaone": Family(rope="neox"),
    "exaone4": Family(
        rope="neox",
        qk_norm="head",
        pre_norms=False,
        post_norms=True,
        window_pattern=4,
        windows_of_layers=64,
        default_window=4096,
        rotated="windowed",
    ),
    "exaone-moe": Family(
        rope="neox",
        qk_norm="head",
        renormalise=False,
        window_pattern=4,
        rotated="windowed",
        least_shared=1,
        says=MIXTURE,
    ),
}
