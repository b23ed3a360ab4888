"""How queries and keys are rotated, as the metadata say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgerun.errors import FormatError, UnsupportedError
from edgerun.models.families import Family
from edgerun.models.numbers import Numbers
from edgerun.models.spec import RopeScaling, Rotation


def rotations_of(n: Numbers, family: Family, head_dim: int, local_dim: int) -> tuple[Rotation, Rotation]:
    """Of layers that see all, with heads of `head_dim`, and of those with a window, with heads of `local_dim`."""
    dim = n.integer("rope.dimension_count", head_dim, 2)
    few = n.integer("rope.dimension_count_swa", min(dim, local_dim), 2)
    for mine, whole in ((dim, head_dim), (few, local_dim)):
        if mine > whole or mine % 2:
            raise FormatError(f"cannot rotate {mine} of {whole} dimensions")
    base = n.real("rope.freq_base", 10000.0)
    local_base = n.real("rope.freq_base_swa", family.local_rope_base or base)
    alpha = n.real("rope.scaling.alpha", 0.0) if family.rope_alpha else 0.0
    if alpha and dim > 2:  # NTK-aware scaling, which is said in metadata but not done to the base
        base *= alpha ** (dim / (dim - 2))
    for each in (base, local_base):
        if not 1.0 < each < 1e30:
            raise FormatError(f"impossible numbers: rope base {each}")
    if family.sections in ("blocks", "interleaved"):
        _check_sections(n, dim)
    scaling = _rope_scaling(n, family, n.integer("context_length", 4096))
    plain = Rotation(dim, base, scaling)
    if family.window_everywhere:  # all layers that attend turn alike, whatever the file says of those with a window
        return plain, plain
    if family.local_rope_plain:
        factor = 1.0 if family.plain_local_factor else scaling.attention_factor
        return plain, Rotation(few, local_base, RopeScaling(attention_factor=factor), from_file=False)
    if scaling.kind == "none" and scaling.factor != 1.0:  # to llama.cpp, none is for layers that see all
        scaling = replace(scaling, kind="linear")
    return plain, Rotation(few, local_base, scaling)


def turned_by_sections(n: Numbers, family: Family) -> Family:
    """The family of a file that may have sections: with them dimensions lie half a head apart from their partners."""
    sections = n.raw("rope.dimension_sections")
    if family.sections != "by_file" or not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu":
        return family
    some = len(sections) >= 2 and min(sections[:2].tolist()) > 0
    return replace(family, rope="neox", sections="blocks") if some else family


def _check_sections(n: Numbers, dim: int) -> None:
    """Pairs of dimensions turn by the position in time, by the row or by the column, so many of each: in text, where
    all three are one, by that. UnsupportedError where some pairs are left to a fourth, which text does not have. (In
    turns, what columns and rows leave over turns by time, as where Qwen3-VL comes from.)"""
    key = "rope.dimension_sections"
    sections = n.raw(key)
    if sections is None:  # Ollama's converter left them out, which text does not miss
        return
    if not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu" or not 3 <= len(sections) <= 4:
        raise FormatError(f"{n.name(key)} must be three or four integers, got {sections!r}")
    if min(sections.tolist()) < 0:
        raise FormatError(f"{n.name(key)} is {sections.tolist()}: a section has no fewer than 0 pairs")
    pairs = np.arange(dim // 2) % max(1, int(sections.sum()))  # sections begin anew after the last
    if not sections.any() or pairs.max() >= sections[:3].sum():
        raise UnsupportedError(f"{n.name(key)} is {sections.tolist()}: not all of {dim // 2} pairs turn in text")


def _rope_scaling(n: Numbers, family: Family, context: int) -> RopeScaling:
    factor = n.real("rope.scaling.factor", 0.0) or n.real("rope.scale_linear", 0.0) or 1.0
    kind = n.text("rope.scaling.type", "none" if factor == 1.0 else "linear")
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
        log_multiplier=n.real("rope.scaling.yarn_log_multiplier", 0.0),
    )
    for what, number in (
        ("attention factor", scaling.attention_factor),
        ("yarn_beta_fast", scaling.beta_fast),
        ("yarn_beta_slow", scaling.beta_slow),
    ):
        if not 1e-3 <= number <= 1e6:
            raise FormatError(f"impossible numbers: rope scaling {what} {number}")
    if not 0.0 <= scaling.log_multiplier <= 1e3:
        raise FormatError(f"impossible numbers: rope scaling yarn_log_multiplier {scaling.log_multiplier}")
    return scaling
