"""The expert of a mixture that every token uses: weighted by a gate of its own (Qwen2-MoE), or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor, product_tensors
from edgerun.models.blocks.dense import activated, gate_up_parts
from edgerun.models.blocks.products import Results, multiply, scale_and_bias, unit_results, widths_of
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import Units


class SharedBuffers:
    """inner: gate and up; weight (T, 1), before the sigmoid."""

    def __init__(self, layout: SharedLayout, rows: int, take: Take) -> None:
        self.inner, self.weight = Results(layout.gate_up, rows, take), take(1)


@dataclass(frozen=True)
class SharedLayout:
    """Of `SharedBuffers`."""

    gate_up: Product
    role: Role = "feed_forward"

    @property
    def widths(self) -> tuple[int, ...]:
        return (*widths_of(self.gate_up), 1)

    def make(self, rows: int, take: Take) -> SharedBuffers:
        return SharedBuffers(self, rows, take)


@dataclass(frozen=True)
class SharedExpert:
    """x += feed_forward(h), or sigmoid(gate . h) * feed_forward(h); h comes normed. gated, fused: the feed-forward, as
    `gate_up_parts`; weighted: there is a gate of the whole."""

    d_model: int
    d_ff: int
    activation: Activation
    weighted: bool
    gated: bool = True
    fused: bool = False
    units: Units | None = None

    @cached_property
    def gate_up(self) -> Product:
        """What h is multiplied with."""
        parts = gate_up_parts("_shexp", self.d_ff, gated=self.gated, fused=self.fused)
        return Product("gate_up", self.d_model, parts)

    @cached_property
    def down(self) -> Product:
        """What gives the result."""
        return Product("down", self.d_ff, (Part("t", "ffn_down_shexp", 0, self.d_model),), units=self.units)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        found = product_tensors(self.gate_up, self.down)
        return found | ({"ffn_gate_inp_shexp": Tensor((self.d_model,))} if self.weighted else {})

    @property
    def floats(self) -> int:
        """As `Block.floats`."""
        return 4 * self.d_ff + self.down.unit_floats

    @cached_property
    def layout(self) -> SharedLayout:
        """Of its buffers."""
        return SharedLayout(self.gate_up)

    @property
    def layouts(self) -> tuple[SharedLayout, ...]:
        """As `Block.layouts`."""
        return (self.layout,)

    def forward(self, here: Here, x: F32, h: F32) -> None:
        """x (T, d) += it, of h (T, d)."""
        s = here.tools.scratch(len(x))
        up, weight = self._inner(here, h, s)
        here.kernels.matmul(here.weights.matrices["ffn_down_shexp"], here.kernels.activations(up), s.t)
        scale_and_bias(here, "ffn_down_shexp", s.t)
        if self.weighted:
            here.kernels.head_gate(s.t, weight, "sigmoid")
        here.kernels.add(x, s.t)

    def add_units(self, here: Here, sums: Sequence[F32], h: F32) -> None:
        """Each unit's sum (T, d) += its part of it, of h (T, d)."""
        s = here.tools.scratch(len(h))
        up, weight = self._inner(here, h, s)
        results = unit_results(here, self.down, up, s)
        for total, each in zip(sums, results, strict=True):
            here.kernels.copy(each, s.t)
            scale_and_bias(here, "ffn_down_shexp", s.t)
            if self.weighted:
                here.kernels.head_gate(s.t, weight, "sigmoid")
            here.kernels.add(total, s.t)

    def _inner(self, here: Here, h: F32, s: Scratch) -> tuple[F32, F32]:
        """What goes into the last product, (T, d_ff), and what its result is weighted by, (T, 1)."""
        b = s.of(self.layout)
        if self.weighted:
            here.kernels.weigh(h, here.vectors["ffn_gate_inp_shexp"], b.weight)
        multiply(here, self.gate_up, h, b.inner)
        return activated(here.kernels, b.inner, self.activation), b.weight
