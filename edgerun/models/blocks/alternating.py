"""Layers that compute with the first of several streams, and from what becomes of it infer what the others become
(AltUp, Baykal et al. 2023, as in Gemma 3n). What layers are fed beside goes to the others too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgerun.kernels.interface import F32, Activation
from edgerun.kernels.stream_weights import StreamWeights
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.closing import ClosingLayout, closing_products
from edgerun.models.blocks.declared import Product, Tensor, product_tensors
from edgerun.models.blocks.norms import apply_norm
from edgerun.models.blocks.products import multiply, scale_and_bias
from edgerun.models.scratch import Layout, Role, Scratch, Take
from edgerun.models.spec import ModelSpec


@dataclass(frozen=True)
class StreamsLayout:
    """See `StreamsBuffers`."""

    streams: int
    d_model: int
    role: Role = "streams"

    @property
    def widths(self) -> tuple[int, ...]:
        n, d = self.streams, self.d_model
        return n * d, d, d, n, n * n, n

    def make(self, rows: int, take: Take) -> StreamsBuffers:
        return StreamsBuffers(self, rows, take)


class StreamsBuffers:
    """For T rows of S streams: thought (T, S, d), what they are thought to become; active (T, d), the first, which the
    layer computes with; first (T, d), what it became, times factors; asked (T, S); mixing (T, S * S) and news (T, S),
    how much of what comes to each."""

    def __init__(self, layout: StreamsLayout, rows: int, take: Take) -> None:
        n, d = layout.streams, layout.d_model
        self.thought = take(n * d).reshape(rows, n, d)
        self.active, self.first = take(d), take(d)
        self.asked, self.mixing, self.news = take(n), take(n * n), take(n)


@dataclass(frozen=True)
class AlternatingStreams:
    """Of S streams X, with asked(v) = altup_router @ norm(v) / d:

    thought = X mixed by asked(X[0]); y = the layer, of thought[0];
    X = thought + (1 + what asked(y) weighs) * (y - thought[0]);
    X[1:] += post_norm(proj(activation(inp_gate(X[0] * altup_correct_scale)) * inputs))
    """

    streams: int
    d_model: int
    eps: float
    activation: Activation
    gate: Product
    proj: Product

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """As `Block.tensors`."""
        n, d = self.streams, self.d_model
        return {
            "altup_router": Tensor((n, d), times=2.0),
            "altup_router_norm": Tensor((d,)),
            "altup_predict_coef": Tensor((n * n, n)),
            "altup_correct_coef": Tensor((n, n)),
            "altup_correct_scale": Tensor((d,)),
            **product_tensors(self.gate, self.proj),
        }

    @property
    def floats(self) -> int:
        """As `Block.floats`."""
        return sum(self._layout.widths) + 2 * self.gate.rows

    @cached_property
    def _layout(self) -> StreamsLayout:
        return StreamsLayout(self.streams, self.d_model)

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        """As `Block.layouts`."""
        return self._layout, ClosingLayout(self.gate)

    def open(self, here: Here, x: F32, s: Scratch) -> F32:
        """Of the streams x (T, S * d): what the layer computes with, in place, (T, d)."""
        b, kernels, vectors = s.of(self._layout), here.kernels, here.vectors
        self._ask(here, x[:, : self.d_model], b, s)
        coefficients = vectors["altup_predict_coef"].reshape(self.streams**2, self.streams)
        shares = StreamWeights(b.asked, coefficients, 1 / self.d_model, b.mixing)
        kernels.mix_streams(self._apart(x), shares, b.thought)
        kernels.copy(b.thought[:, 0], b.active)
        return b.active

    def close(self, here: Here, x: F32, inputs: F32, s: Scratch) -> None:
        """x (T, S * d), of what became of what `open` gave. inputs: the layer's, (T, width)."""
        b, kernels, vectors, d = s.of(self._layout), here.kernels, here.vectors, self.d_model
        self._ask(here, b.active, b, s)
        coefficients = vectors["altup_correct_coef"].reshape(self.streams, self.streams)
        shares = StreamWeights(b.asked, coefficients, 1 / d, b.news)
        factors = vectors["altup_correct_scale"]
        kernels.correct_streams(b.thought, b.active, shares, self._apart(x), factors, b.first)
        fed = s.of(ClosingLayout(self.gate))
        multiply(here, self.gate, b.first, fed)
        gate, (part,) = fed.parts["gate"], self.proj.parts
        kernels.gated(gate, inputs, self.activation, gate)
        kernels.matmul(here.weights.matrices[part.tensor], kernels.activations(gate), s.t)
        scale_and_bias(here, part.tensor, s.t)
        apply_norm(kernels, vectors, self.proj.post_norm, "rms", self.eps, s.t, s.t)
        for stream in range(1, self.streams):
            kernels.add(x[:, stream * d : (stream + 1) * d], s.t)

    def _apart(self, x: F32) -> F32:
        """(T, S, d)."""
        return x.reshape(len(x), self.streams, self.d_model)

    def _ask(self, here: Here, of: F32, b: StreamsBuffers, s: Scratch) -> None:
        kernels = here.kernels
        kernels.rms_norm(of, here.vectors["altup_router_norm"], self.eps, s.h)
        kernels.matmul(here.weights.matrices["altup_router"], kernels.activations(s.h), b.asked)


def streams_of(spec: ModelSpec) -> AlternatingStreams | None:
    """Of every layer; None: there is one stream."""
    if spec.streams == 1:
        return None
    gate, proj = closing_products(spec)
    return AlternatingStreams(spec.streams, spec.d_model, spec.norm_eps, spec.activation, gate, proj)
