"""Phi 2, 3, 3.5 and 4."""

from edgerun.models.families.family import Family

FAMILIES = {
    "phi2": Family(
        rope="neox",
        norm="layer",
        norm_biases=True,
        head_bias=True,
        parallel=True,
        gated=False,
        activation="gelu",
    ),
    "phi3": Family(rope="neox", fused_gate_up=True),
    "phimoe": Family(rope="neox", norm_biases=True, head_bias=True, expert_length=False),
}
