"""Command R, Command R7B and Command A."""

from edgerun.models.families.family import LOCAL_BASE, Family

FAMILIES = {
    "command-r": Family(rope="norm", norm="layer", parallel=True, logits="times"),
    "cohere2": Family(
        rope="norm",
        norm="layer",
        parallel=True,
        window_pattern=4,
        rotated="windowed",
        logits="times",
        says=LOCAL_BASE,
    ),
}
