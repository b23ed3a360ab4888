"""The expert of a mixture that every token uses, weighted by a gate of its own (Qwen2-MoE)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor
from edgerun.models.blocks.dense import GateUpLayout


@dataclass(frozen=True)
class SharedExpert:
    """x += sigmoid(gate . h) * feed_forward(h); h comes normed."""

    d_model: int
    d_ff: int
    activation: Activation

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        d, ff = self.d_model, self.d_ff
        return {
            "ffn_gate_shexp": Tensor((ff, d)),
            "ffn_up_shexp": Tensor((ff, d)),
            "ffn_down_shexp": Tensor((d, ff)),
            "ffn_gate_inp_shexp": Tensor((d,)),
        }

    @property
    def floats(self) -> int:
        """As `Block.floats`."""
        return 4 * self.d_ff

    @cached_property
    def layout(self) -> GateUpLayout:
        """Of its buffers."""
        parts = (Part("gate", "ffn_gate_shexp", 0, self.d_ff), Part("up", "ffn_up_shexp", 0, self.d_ff))
        return GateUpLayout(Product("gate_up", self.d_model, parts))

    @property
    def layouts(self) -> tuple[GateUpLayout, ...]:
        """As `Block.layouts`."""
        return (self.layout,)

    def forward(self, here: Here, x: F32, h: F32) -> None:
        """x (T, d) += it, of h (T, d)."""
        kernels, w, s = here.kernels, here.weights, here.tools.scratch(len(x))
        b = s.of(self.layout)
        kernels.matmul_many([w.matrices[name] for name in b.tensors], kernels.activations(h), list(b.tensors.values()))
        gate = b.parts["gate"]
        kernels.gated(gate, b.parts["up"], self.activation, gate)
        kernels.matmul(w.matrices["ffn_down_shexp"], kernels.activations(gate), s.t)
        weight = 1.0 / (1.0 + np.exp(-(h * w.vectors["ffn_gate_inp_shexp"]).sum(axis=1)))  # row by row: no BLAS
        x += s.t * weight[:, None].astype(np.float32)
