"""DeepSeek's mixtures and those built like them: shared experts, some dense layers before."""

from edgerun.models.families.family import Family

FAMILIES = {
    "deepseek": Family(rope="norm", renormalise=False),
    "dots1": Family(rope="neox", qk_norm="head", renormalise=False),
}
