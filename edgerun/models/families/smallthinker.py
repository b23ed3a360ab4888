"""SmallThinker."""

from edgerun.models.families.family import LOCAL_BASE, Family

FAMILIES = {
    "smallthinker": Family(
        rope="neox",
        activation="relu",
        early_router=True,
        window_pattern=4,
        window_after=True,
        default_window=0,
        rotated="fourths",
        fixed_window=4096,
        says=LOCAL_BASE | {"expert_gating_func"},
    ),
}
