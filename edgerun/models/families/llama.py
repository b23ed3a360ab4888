"""Llama 1 to 4, Mistral, Mixtral, TinyLlama, SmolLM2."""

from edgerun.models.families.family import LOCAL_BASE, Family

FAMILIES = {
    "llama": Family(rope="norm"),
    "llama4": Family(
        rope="norm",
        qk_norm="head",
        qk_norm_not_of=128,
        qk_norm_plain=True,
        qk_norm_after=True,
        temperature="unrotated",
        router="sigmoid",
        renormalise=False,
        weighted_inputs=True,
        least_shared=1,
        window_pattern=4,
        default_window=0,
        chunks=8192,
        rotated="fourths",
        says=LOCAL_BASE,
    ),
}
