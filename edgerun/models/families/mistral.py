"""Ministral 3 and Devstral 2; older models of Mistral's are `llama`."""

from edgerun.models.families.family import Family

FAMILIES = {"mistral3": Family(rope="norm", temperature="said", yarn_betas=True, expert_length=False)}
