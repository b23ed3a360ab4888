"""Trinity and Laguna: gated attention, mixtures like GLM's."""

from edgerun.models.families.family import LOCAL_BASE, MIXTURE, Family

FAMILIES = {
    "afmoe": Family(
        rope="neox",
        qk_norm="head",
        output_gate="sigmoid",
        post_norms=True,
        scaled_embedding=True,
        router="sigmoid",
        renormalise=False,
        window_pattern=4,
        default_window=0,
        rotated="three_of_four",
        says=MIXTURE | LOCAL_BASE,
    ),
    "laguna": Family(
        rope="neox",
        qk_norm="head",
        output_gate="softplus",
        router="sigmoid",
        renormalise=False,
        window_pattern=4,
        window_after=True,
        default_window=0,
        local_rope_plain=True,
        says=MIXTURE | LOCAL_BASE,
        plain_local_factor=True,
    ),
}
