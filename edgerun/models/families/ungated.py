"""Llama-like models with feed-forwards that have no gates, or with LayerNorms: StarCoder2, Nemotron, Jais 2, AFM,
StableLM, Orion."""

from edgerun.models.families.family import Family

FAMILIES = {
    "starcoder2": Family(rope="neox", norm="layer", norm_biases=True, gated=False, activation="gelu"),
    "nemotron": Family(rope="neox", norm="layer", norm_biases=True, gated=False, activation="relu2"),
    "jais2": Family(rope="neox", norm="layer", norm_biases=True, gated=False, activation="relu2"),
    "arcee": Family(rope="norm", gated=False, activation="relu2"),
    "stablelm": Family(rope="neox", norm="layer", norm_biases=True),
    "orion": Family(rope="neox", norm="layer", norm_biases=True),
}
