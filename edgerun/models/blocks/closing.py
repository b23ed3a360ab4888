"""How a layer of Gemma 4 ends: what it is fed beside of the tokens' own embeddings, and a factor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor, product_tensors
from edgerun.models.blocks.products import Results, add_product, multiply, widths_of
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec

_FACTOR = "layer_output_scale"


@dataclass(frozen=True)
class ClosingLayout:
    """Of the gate's buffer."""

    gate: Product
    role: Role = "feed_forward"

    @property
    def widths(self) -> tuple[int, ...]:
        return widths_of(self.gate)

    def make(self, rows: int, take: Take) -> Results:
        return Results(self.gate, rows, take)


@dataclass(frozen=True)
class Closing:
    """x += post_norm(proj(activation(inp_gate(x)) * inputs)), of a model whose layers are fed inputs (T, width); then x
    *= a factor, if the file has one."""

    gate: Product | None
    proj: Product | None
    activation: Activation

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """As `Block.tensors`."""
        fed = {} if self.gate is None or self.proj is None else product_tensors(self.gate, self.proj)
        return fed | {_FACTOR: Tensor((1,), False)}

    @property
    def layouts(self) -> tuple[ClosingLayout, ...]:
        """As `Block.layouts`."""
        return () if self.gate is None else (ClosingLayout(self.gate),)

    def forward(self, here: Here, x: F32, inputs: F32 | None, s: Scratch) -> None:
        """x (T, d) in place. inputs: the layer's, (T, width)."""
        if self.gate is not None and self.proj is not None and inputs is not None:
            b = s.of(ClosingLayout(self.gate))
            multiply(here, self.gate, x, b)
            gate = b.parts["gate"]
            here.kernels.gated(gate, inputs, self.activation, gate)
            add_product(here, self.proj, gate, x, s)
        factor = here.vectors.get(_FACTOR)
        if factor is not None:
            here.kernels.scale(x, float(factor[0]))


def closing_of(spec: ModelSpec) -> Closing | None:
    """Of every layer; None: there is nothing to do."""
    if not spec.family.per_layer_inputs or spec.streams > 1:
        return None
    if not spec.per_layer_width:
        return Closing(None, None, spec.activation)
    return Closing(*closing_products(spec), spec.activation)


def closing_products(spec: ModelSpec) -> tuple[Product, Product]:
    """Of what layers are fed beside: a gate, and what is added."""
    width, d = spec.per_layer_width, spec.d_model
    gate = Product("layer_in", d, (Part("gate", "inp_gate", 0, width),))
    return gate, Product("layer_out", width, (Part("t", "proj", 0, d),), post_norm="post_norm", eps=spec.norm_eps)
