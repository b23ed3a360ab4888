"""SmolLM3; older SmolLMs are `llama`."""

from edgerun.models.families.family import Family

FAMILIES = {"smollm3": Family(rope="norm", rotated="three_of_four")}
