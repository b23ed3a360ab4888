"""Ministral 3 and Devstral 2; older models of Mistral's are `llama`."""

from edgerun.models.families.family import LOG_MULTIPLIER, YARN_BETAS, Family

FAMILIES = {"mistral3": Family(rope="norm", temperature="said", expert_length=False, says=LOG_MULTIPLIER | YARN_BETAS)}
