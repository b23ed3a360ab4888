"""LFM2 and LFM2.5 of Liquid AI: short convolutions, and attention in some layers; dense, or with
experts."""

from dataclasses import replace

from edgerun.models.families.family import Family

_LFM2 = Family(
    rope="neox", qk_norm="head", window_everywhere=True, short_convolutions=True, output_norm="token_embd_norm"
)

FAMILIES = {
    "lfm2": _LFM2,
    "lfm2moe": replace(_LFM2, router="sigmoid", window_everywhere=False, says=frozenset({"expert_gating_func"})),
}
