"""The feed-forward, gated (Shazeer 2020) or not: every weight for every token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32, Activation, Kernels
from edgerun.models.blocks.absent import AbsentFeedForward
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.norms import product_input
from edgerun.models.blocks.products import Results, add_product, multiply, widths_of
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec


@dataclass(frozen=True)
class GateUpLayout:
    """Buffers of gate and up."""

    product: Product
    role: Role = "feed_forward"

    @property
    def widths(self) -> tuple[int, ...]:
        return widths_of(self.product)

    def make(self, rows: int, take: Take) -> Results:
        return Results(self.product, rows, take)


@dataclass(frozen=True)
class Dense:
    """x += down(activation(gate(norm(x))) * up(norm(x))), or down(activation(up(norm(x)))) without a gate. after: what
    it is of is what the mixer's norm gave, not x: they stand side by side. deviations: of the gate only what is so many
    above its mean is let through; 0: all."""

    gate_up: Product
    down: Product
    activation: Activation
    after: bool = False
    deviations: float = 0.0

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return product_tensors(self.gate_up, self.down)

    @property
    def products(self) -> tuple[Product, ...]:
        return self.gate_up, self.down

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.down.sums

    @property
    def floats(self) -> int:
        return 2 * self.gate_up.rows + self.down.unit_floats

    @cached_property
    def layout(self) -> GateUpLayout:
        """Of its buffers."""
        return GateUpLayout(self.gate_up)

    @property
    def layouts(self) -> tuple[GateUpLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        self.add(here, x, x, s)

    def add(self, here: Here, x: F32, out: F32, s: Scratch) -> None:
        """out (T, d) += it, of x (T, d)."""
        h = s.h if self.after else product_input(here.kernels, here.vectors, self.gate_up, x, s.h)
        b = s.of(self.layout)
        multiply(here, self.gate_up, h, b)
        if self.deviations:
            here.kernels.above_mean(b.parts["gate"], self.deviations)
        up = activated(here.kernels, b, self.activation)
        add_product(here, self.down, up, out, s)


def activated(kernels: Kernels, b: Results, activation: Activation) -> F32:
    """What goes into the last product, made of gate, if there is one, and up: in their buffers."""
    up, gate = b.parts["up"], b.parts.get("gate")
    kernels.gated(up if gate is None else gate, None if gate is None else up, activation, up)
    return up


def dense_of(spec: ModelSpec, layer: int, post_norm: str = "post_ffw_norm") -> Dense | AbsentFeedForward:
    """A layer's feed-forward, as its family and numbers say. post_norm: of its result, in families that have some."""
    family, ff, d = spec.family, spec.layers[layer].d_ff, spec.d_model
    units = spec.units(layer)
    parts = gate_up_parts("", ff, gated=family.gated, fused=spec.layers[layer].fused_gate_up)
    down = Product(
        "down",
        ff,
        (Part("t", "ffn_down", 0, d),),
        "ffn_sub_norm" if family.sub_norms else "",
        post_norm if family.post_norms else "",
        spec.norm_eps,
        spec.whole[layer].d_ff,
        post_eps=family.post_norm_eps,
        factor=spec.residual_scale,
        units=None if units is None else units.feed_forward,
    )
    if not ff:
        return AbsentFeedForward(down, (1,) * family.sub_norms)
    norm = family.ffn_norm if family.pre_norms and not family.parallel else ""
    gate_up = Product("gate_up", d, parts, norm, eps=spec.norm_eps, norm_kind=family.norm)
    return Dense(gate_up, down, spec.activation, family.parallel, spec.layers[layer].gate_deviations)


def gate_up_parts(end: str, ff: int, *, gated: bool, fused: bool) -> tuple[Part, ...]:
    """Gate, if there is one, and up, in one tensor or in two, whose names end with `end`."""
    if not gated:
        return (Part("up", f"ffn_up{end}", 0, ff),)
    if fused:
        return Part("gate", f"ffn_up{end}", 0, ff), Part("up", f"ffn_up{end}", ff, ff)
    return Part("gate", f"ffn_gate{end}", 0, ff), Part("up", f"ffn_up{end}", 0, ff)
