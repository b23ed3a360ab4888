"""How queries and keys are rotated, as the metadata say."""

from __future__ import annotations

from edgerun.errors import FormatError, UnsupportedError
from edgerun.models.families import Family
from edgerun.models.numbers import Numbers
from edgerun.models.spec import RopeScaling, Rotation


def rotations_of(n: Numbers, family: Family, head_dim: int) -> tuple[Rotation, Rotation]:
    """Of layers that see all, and of those with a window."""
    dim = n.integer("rope.dimension_count", head_dim, 2)
    if dim > head_dim or dim % 2:
        raise FormatError(f"cannot rotate {dim} of {head_dim} dimensions")
    base = n.real("rope.freq_base", 10000.0)
    if base <= 1.0:
        raise FormatError(f"impossible numbers: rope base {base}")
    plain = Rotation(dim, base, _rope_scaling(n, n.integer("context_length", 4096)))
    if not family.local_rope_base:
        return plain, plain
    return plain, Rotation(dim, family.local_rope_base, from_file=False)


def _rope_scaling(n: Numbers, context: int) -> RopeScaling:
    kind = n.text("rope.scaling.type", "none")
    factor = n.real("rope.scaling.factor", 0.0) or n.real("rope.scale_linear", 0.0) or 1.0
    if kind == "none" and factor != 1.0:
        kind = "linear"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(f"rope scaling {kind!r} is not supported")
    if not 1e-3 <= factor <= 1e6:
        raise FormatError(f"impossible rope scaling factor {factor}")
    scaling = RopeScaling(
        kind=kind,
        factor=factor,
        original_context=n.integer("rope.scaling.original_context_length", context),
        attention_factor=n.real("rope.scaling.attn_factor", 1.0) or 1.0,
        beta_fast=n.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=n.real("rope.scaling.yarn_beta_slow", 1.0),
    )
    for what, number in (
        ("attention factor", scaling.attention_factor),
        ("yarn_beta_fast", scaling.beta_fast),
        ("yarn_beta_slow", scaling.beta_slow),
    ):
        if not 1e-3 <= number <= 1e6:
            raise FormatError(f"impossible numbers: rope scaling {what} {number}")
    return scaling
