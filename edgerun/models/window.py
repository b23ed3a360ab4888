"""Texts without an end: layers that would see all positions see the last ones and the first few.

The first positions draw what attention has to spare, and without them a model that sees only a window falls apart
(StreamingLLM, Xiao et al. 2024; LM-Infinite, Han et al. 2024). Queries meet them as if they stood just before the
window, so that no distance is greater than one that the model was made for.
"""

from __future__ import annotations

from dataclasses import replace

from edgerun.errors import UnsupportedError, UsageError
from edgerun.models.spec import LayerNumbers, ModelSpec

ENDLESS = 1 << 22  # positions: more than anybody reads


def with_window(spec: ModelSpec, window: int, kept_first: int) -> ModelSpec:
    """The model with layers that see the last `window` positions at most, and the first `kept_first`.

    UsageError for more positions than the model was made for, UnsupportedError for a model whose attention cannot be
    cut so."""
    if window + kept_first > spec.context_length:
        raise UsageError(
            f"a window of {window} positions and the first {kept_first} are more than the {spec.context_length} that "
            "this model was made for"
        )
    reason = why_no_window(spec)
    if reason:
        raise UnsupportedError(f"this {spec.architecture} can have no window: {reason}; leave --window out")
    return replace(spec, layers=tuple(_narrowed(layer, window, kept_first) for layer in spec.layers))


def why_no_window(spec: ModelSpec) -> str:
    """What keeps a model's layers from seeing a window only, for people; "": nothing."""
    if any(layer.latent is not None for layer in spec.layers):
        return "latent attention has none"
    return ""


def _narrowed(layer: LayerNumbers, window: int, kept_first: int) -> LayerNumbers:
    if not layer.n_kv_heads or 0 < layer.window <= window:
        return layer
    return replace(layer, window=window, chunked=False, kept_first=kept_first)
