"""A gated feed-forward of which only the neurons that fire are used (PowerInfer, Song et al. 2023): its activation is a
ReLU, up and down lie neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from edgerun.kernels.interface import F32, Activation
from edgerun.models.blocks.absent import AbsentFeedForward
from edgerun.models.blocks.base import Cancel, Here, check
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.norms import product_input
from edgerun.models.blocks.products import Results, multiply
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec

FIRING = 0.1  # of the neurons, for a token: what plans expect


class NeuronBuffers:
    """gate: the product's result; up (T, ff): of the neurons that fired."""

    def __init__(self, product: Product, rows: int, take: Take) -> None:
        self.results = Results(product, rows, take)
        self.gate, self.up = self.results.parts["gate"], take(product.rows)


@dataclass(frozen=True)
class NeuronLayout:
    """Of `NeuronBuffers`."""

    product: Product
    role: Role = "feed_forward"

    @property
    def widths(self) -> tuple[int, ...]:
        return self.product.rows, self.product.rows

    def make(self, rows: int, take: Take) -> NeuronBuffers:
        return NeuronBuffers(self.product, rows, take)


@dataclass(frozen=True)
class SparseNeurons:
    """x += the neurons whose gate fired for any of the rows, in ascending order."""

    gate: Product
    activation: Activation

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        shape = self.gate.rows, self.gate.cols
        rows = {part: Tensor(shape, times=FIRING) for part in ("ffn_up", "ffn_down_t")}
        return {**product_tensors(self.gate), **rows}

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return (Reduction(self.gate.cols),)

    @property
    def floats(self) -> int:
        return 4 * self.gate.rows

    @cached_property
    def layout(self) -> NeuronLayout:
        """Of its buffers."""
        return NeuronLayout(self.gate)

    @property
    def layouts(self) -> tuple[NeuronLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        b = s.of(self.layout)
        product_input(here.kernels, here.vectors, self.gate, x, s.h)
        multiply(here, self.gate, s.h, b.results)
        here.cut(partial(self._fired, here, x, s.h, b))

    def _fired(self, here: Here, x: F32, h: F32, b: NeuronBuffers, cancelled: Cancel, rows: int) -> None:
        """x += the neurons, by b.gate, of the first so many rows."""
        check(cancelled)
        kernels, gate, up = here.kernels, b.gate[:rows], b.up[:rows]
        ranks = here.tools.ranks
        out = x[:rows] if ranks is None else np.zeros_like(x[:rows])
        inputs = kernels.activations(h[:rows])
        ids = np.flatnonzero((gate > 0).any(axis=0)).astype(np.int32)
        with here.tools.store.neurons(here.layer, ids, cancelled) as batches:
            for batch in batches:
                kernels.neurons_up(gate, inputs, batch.ready, self.activation, up)
                rest = batch.rest()
                if rest is not None:
                    kernels.neurons_up(gate, inputs, rest, self.activation, up)
                kernels.neurons_down(up, batch.every, out)
        if ranks is not None:
            ranks.all_reduce(out)
            kernels.add(x[:rows], out)


def neurons_of(spec: ModelSpec, layer: int) -> SparseNeurons | AbsentFeedForward:
    """A layer's sparse feed-forward."""
    if not spec.layers[layer].d_ff:
        return AbsentFeedForward(Product("down", 0, (Part("t", "ffn_down_t", 0, spec.d_model),)), ())
    parts = (Part("gate", "ffn_gate", 0, spec.layers[layer].d_ff),)
    return SparseNeurons(Product("gate", spec.d_model, parts, "ffn_norm", eps=spec.norm_eps), spec.activation)
