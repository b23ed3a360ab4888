"""Llama 1 to 3, Mistral, Mixtral, TinyLlama, SmolLM2."""

from edgerun.models.families.family import Family

FAMILIES = {"llama": Family(rope="norm")}
