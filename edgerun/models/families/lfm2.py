"""LFM2 and LFM2.5 of Liquid AI: short convolutions, and attention in some layers."""

from edgerun.models.families.family import Family

FAMILIES = {
    "lfm2": Family(
        rope="neox", qk_norm="head", window_everywhere=True, short_convolutions=True, output_norm="token_embd_norm"
    ),
}
