"""DeepSeek V2 to V3.1 and R1, GLM-4.7-Flash, Kimi K2, Kanana 2, GigaChat 3."""

from edgerun.models.families.family import Family

FAMILIES = {"deepseek2": Family(rope="norm", latent_attention=True)}
