"""How a prompt backend's weights and activations are stored: names as they are used in the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgerun.errors import UsageError


@dataclass(frozen=True)
class Scheme:
    """weights: f32, f16, i8 (one scale an output channel), i7 (the same, -63 to 63: pairs of products with u8 stay
    below 2^15, where processors without a dot product saturate) or i4 (a scale for `block` inputs of a channel; 0: for
    all).
    activations: f32, f16, or u8 / u16 with one scale and zero point for the tensor, found out on a text.
    results: what a quantised product's result is rounded to; "f32": it is not."""

    name: str
    weights: Literal["f32", "f16", "i8", "i7", "i4"]
    activations: Literal["f32", "f16", "u8", "u16"]
    results: Literal["f32", "u8", "u16"] = "f32"
    block: int = 0

    @property
    def quantises_activations(self) -> bool:
        """Whether ranges must be known."""
        return self.activations in ("u8", "u16")

    @property
    def bits(self) -> int:
        """Of a weight."""
        return {"f32": 32, "f16": 16, "i8": 8, "i7": 7, "i4": 4}[self.weights]


SCHEMES = {
    each.name: each
    for each in (
        Scheme("fp32", "f32", "f32"),
        Scheme("fp16", "f16", "f16"),
        Scheme("w8a8", "i8", "u8"),
        Scheme("w7a8", "i7", "u8"),
        Scheme("w8a16", "i8", "u16"),
        Scheme("w4a16", "i4", "u16", block=32),
    )
}


def scheme_named(name: str) -> Scheme:
    """UsageError naming the known ones."""
    if name not in SCHEMES:
        raise UsageError(f"unknown scheme {name!r}; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
