"""A prompt backend made of our own kernels, product by product: it sees what goes into each of them.

For finding ranges on a text, and to compare other backends with, layer by layer. Slower than the decoder's own way.
"""

from __future__ import annotations

import numpy as np

from edgerun.events import SpanSink
from edgerun.models.blocks.base import Watch
from edgerun.models.chunks import CHUNK
from edgerun.models.prompt import PromptWalk


class KernelLayers:
    """`PromptBackend` that tells `see` of every product. experts: also what goes through them."""

    name = "kernels, product by product"
    least_tokens = 1
    wave_tokens = CHUNK

    def __init__(self, see: Watch, *, experts: bool = False) -> None:
        self._see = see
        self._experts = experts

    def run(self, walk: PromptWalk) -> None:
        self.run_layers(walk, range(walk.spec.n_layers))

    def watch(self, watcher: SpanSink | None) -> None:
        """It tells nothing: the kernels do."""

    def run_layers(self, walk: PromptWalk, layers: range) -> None:
        """Some layers."""
        for layer in layers:
            walk.route(layer)
            walk.check()
            walk.dense(layer, self._see)
            if walk.spec.layers[layer].n_experts and self._experts:
                self._see_experts(walk, layer)
            elif walk.spec.layers[layer].n_experts:
                walk.experts(layer)

    def _see_experts(self, walk: PromptWalk, layer: int) -> None:
        kernels, routed = walk.kernels, walk.route_rows(layer)
        with walk.lent_experts(routed) as batches:
            for expert in (each for batch in batches for each in batch):
                walk.check()
                slots = routed.slots_of[expert.id]
                h = np.ascontiguousarray(routed.h[routed.rows_of[expert.id]])
                assert expert.gate is not None  # segments.check_supported
                gate, up = (np.empty((len(h), expert.up.rows), np.float32) for _ in range(2))
                kernels.matmul_many((expert.gate, expert.up), kernels.activations(h), (gate, up))
                self._see(layer, "expert_in", h, {"gate": gate, "up": up})
                kernels.gated(gate, up, walk.spec.activation, gate)
                t = np.empty((len(h), walk.spec.d_model), np.float32)
                kernels.matmul(expert.down, kernels.activations(gate), t)
                self._see(layer, "expert_down", gate, {"t": t})
                routed.parts[slots] = t
        walk.combine_experts(routed)
