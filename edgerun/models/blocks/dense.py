"""The gated feed-forward (Shazeer 2020): every weight for every token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.absent import AbsentFeedForward
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor, product_tensors
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
    """x += down(activation(gate(norm(x))) * up(norm(x)))."""

    gate_up: Product
    down: Product
    activation: Activation

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return product_tensors(self.gate_up, self.down)

    @property
    def products(self) -> tuple[Product, ...]:
        return self.gate_up, self.down

    @property
    def floats(self) -> int:
        return 2 * self.gate_up.rows

    @cached_property
    def layout(self) -> GateUpLayout:
        """Of its buffers."""
        return GateUpLayout(self.gate_up)

    @property
    def layouts(self) -> tuple[GateUpLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        kernels, b = here.kernels, s.of(self.layout)
        kernels.rms_norm(x, here.vectors[self.gate_up.norm], self.gate_up.eps, s.h)
        multiply(here, self.gate_up, s.h, b)
        gate = b.parts["gate"]
        kernels.gated(gate, b.parts["up"], self.activation, gate)
        add_product(here, self.down, gate, x, s.t)


def dense_of(spec: ModelSpec, layer: int) -> Dense | AbsentFeedForward:
    """A layer's feed-forward, as its family and numbers say."""
    family, ff, d = spec.family, spec.layers[layer].d_ff, spec.d_model
    if family.fused_gate_up:
        parts = (Part("gate", "ffn_up", 0, ff), Part("up", "ffn_up", ff, ff))
    else:
        parts = (Part("gate", "ffn_gate", 0, ff), Part("up", "ffn_up", 0, ff))
    down = Product(
        "down",
        ff,
        (Part("t", "ffn_down", 0, d),),
        "ffn_sub_norm" if family.sub_norms else "",
        "post_ffw_norm" if family.post_norms else "",
        spec.norm_eps,
        spec.whole[layer].d_ff,
    )
    if not ff:
        return AbsentFeedForward(down, (1,) * family.sub_norms)
    return Dense(Product("gate_up", d, parts, family.ffn_norm, eps=spec.norm_eps), down, spec.activation)
