"""The expert of a mixture that every token uses: weighted by a gate of its own (Qwen2-MoE), or not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor, product_tensors
from edgerun.models.blocks.dense import GateUpLayout, activated, gate_up_parts
from edgerun.models.blocks.products import multiply, scale_and_bias


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

    @cached_property
    def gate_up(self) -> Product:
        """What h is multiplied with."""
        parts = gate_up_parts("_shexp", self.d_ff, gated=self.gated, fused=self.fused)
        return Product("gate_up", self.d_model, parts)

    @cached_property
    def down(self) -> Product:
        """What gives the result."""
        return Product("down", self.d_ff, (Part("t", "ffn_down_shexp", 0, self.d_model),))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        found = product_tensors(self.gate_up, self.down)
        return found | ({"ffn_gate_inp_shexp": Tensor((self.d_model,))} if self.weighted else {})

    @property
    def floats(self) -> int:
        """As `Block.floats`."""
        return 4 * self.d_ff

    @cached_property
    def layout(self) -> GateUpLayout:
        """Of its buffers."""
        return GateUpLayout(self.gate_up)

    @property
    def layouts(self) -> tuple[GateUpLayout, ...]:
        """As `Block.layouts`."""
        return (self.layout,)

    def forward(self, here: Here, x: F32, h: F32) -> None:
        """x (T, d) += it, of h (T, d)."""
        s = here.tools.scratch(len(x))
        b = s.of(self.layout)
        multiply(here, self.gate_up, h, b)
        up = activated(here.kernels, b, self.activation)
        here.kernels.matmul(here.weights.matrices["ffn_down_shexp"], here.kernels.activations(up), s.t)
        scale_and_bias(here, "ffn_down_shexp", s.t)
        if self.weighted:
            with np.errstate(over="ignore"):  # of a gate that is shut: 1 / infinity
                weight = 1.0 / (
                    1.0 + np.exp(-(h * here.vectors["ffn_gate_inp_shexp"]).sum(axis=1))
                )  # row by row: no BLAS
            s.t *= weight[:, None].astype(np.float32)
        here.kernels.add(x, s.t)
