"""Nemotron-H and Nemotron 3 Nano: layers of one block, Mamba-2, attention or a feed-forward without gates."""

from dataclasses import replace

from edgerun.models.families.family import MIXTURE, Family

_DENSE = Family(
    rope="neox",
    rotated="none",
    activation="relu2",
    gated=False,
    ffn_norm="attn_norm",
    recurrence="mamba",
    single_blocks=True,
    says=MIXTURE - {"expert_gating_func"},
)
FAMILIES = {"nemotron_h": _DENSE, "nemotron_h_moe": replace(_DENSE, router="sigmoid", renormalise=False)}
