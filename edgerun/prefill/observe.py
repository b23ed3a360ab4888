"""A prompt backend made of our own kernels, product by product: it sees what goes into each of them.

For finding ranges on a text, and to compare other backends with, layer by layer. Slower than the decoder's own way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerun.kernels.interface import F32, Kernels
from edgerun.models import ModelSpec
from edgerun.models.chunks import chunks
from edgerun.models.footprint import CHUNK
from edgerun.models.prompt import PromptWalk
from edgerun.prefill.stages import Product, ProductName, products_of
from edgerun.weights import LayerWeights

See = Callable[[int, ProductName, F32, dict[str, F32]], None]


class KernelLayers:
    """`PromptBackend` that tells `see` (layer, product, its input after the norm, its results before what follows).
    experts: also what goes through them."""

    name = "kernels, product by product"
    least_tokens = 1
    wave_tokens = CHUNK

    def __init__(self, see: See, *, experts: bool = False) -> None:
        self._see = see
        self._experts = experts

    def run(self, walk: PromptWalk) -> None:
        self.run_layers(walk, range(walk.spec.n_layers))

    def run_layers(self, walk: PromptWalk, layers: range) -> None:
        """Some layers."""
        spec, kernels = walk.spec, walk.decoder.kernels
        products = products_of(spec)
        for layer in layers:
            if spec.family.early_router:
                walk.route(layer)
            with walk.decoder.store.layer(layer, walk.cancelled) as weights:
                for part in chunks(len(walk.x), CHUNK):
                    walk.check()
                    x = walk.x[part]
                    q, k, v = self._product(kernels, spec, weights, layer, products["qkv"], x).values()
                    o = walk.attend(layer, part.start, q, k, v)
                    out = self._product(kernels, spec, weights, layer, products["o"], o)
                    add_result(kernels, spec, weights.vectors, products["o"], out["t"], x)
                    if "down" in products:
                        both = self._product(kernels, spec, weights, layer, products["gate_up"], x)
                        kernels.gated(both["gate"], both["up"], spec.activation, both["gate"])
                        out = self._product(kernels, spec, weights, layer, products["down"], both["gate"])
                        add_result(kernels, spec, weights.vectors, products["down"], out["t"], x)
            if spec.n_experts and self._experts:
                self._see_experts(walk, layer)
            elif spec.n_experts:
                walk.experts(layer)

    def _see_experts(self, walk: PromptWalk, layer: int) -> None:
        kernels, routed = walk.decoder.kernels, walk.route_rows(layer)
        with walk.decoder.lent_experts(routed, routed.chosen, walk.cancelled) as batches:
            for expert in (each for batch in batches for each in batch):
                walk.check()
                slots = routed.slots_of[expert.id]
                h = np.ascontiguousarray(routed.h[slots // routed.used])
                gate, up = (np.empty((len(h), expert.gate.rows), np.float32) for _ in range(2))
                kernels.matmul_many((expert.gate, expert.up), kernels.activations(h), (gate, up))
                self._see(layer, "expert_in", h, {"gate": gate, "up": up})
                kernels.gated(gate, up, walk.spec.activation, gate)
                t = np.empty((len(h), walk.spec.d_model), np.float32)
                kernels.matmul(expert.down, kernels.activations(gate), t)
                self._see(layer, "expert_down", gate, {"t": t})
                routed.parts[slots] = t
        walk.combine_experts(routed)

    def _product(
        self, kernels: Kernels, spec: ModelSpec, weights: LayerWeights, layer: int, product: Product, inner: F32
    ) -> dict[str, F32]:
        inner = normed(kernels, spec, weights.vectors, product, inner)
        rows = kernels.activations(inner)
        whole: dict[str, F32] = {}
        raw: dict[str, F32] = {}
        for part in product.parts:
            if part.tensor not in whole:
                matrix = weights.matrices[part.tensor]
                whole[part.tensor] = np.empty((len(inner), matrix.rows), np.float32)
                kernels.matmul(matrix, rows, whole[part.tensor])
            raw[part.out] = np.ascontiguousarray(whole[part.tensor][:, part.first : part.first + part.rows])
        self._see(layer, product.name, inner, raw)
        return {part.out: scaled(raw[part.out], weights.vectors, product, part.out) for part in product.parts}


def normed(kernels: Kernels, spec: ModelSpec, vectors: dict[str, F32], product: Product, inner: F32) -> F32:
    """A product's input after its norm, if it has one: a new array, or `inner`."""
    if not product.norm:
        return inner
    out = np.empty_like(inner)
    kernels.rms_norm(np.ascontiguousarray(inner), vectors[product.norm], spec.norm_eps, out)
    return out


def scaled(result: F32, vectors: dict[str, F32], product: Product, out: str) -> F32:
    """A part's result with its factor and bias, in place."""
    part = next(each for each in product.parts if each.out == out)
    factor, bias = vectors.get(part.tensor + ".scale"), vectors.get(part.tensor + ".bias")
    if factor is not None:
        result *= factor[0]
    if bias is not None:
        result += bias[part.first : part.first + part.rows]
    return result


def add_result(kernels: Kernels, spec: ModelSpec, vectors: dict[str, F32], product: Product, t: F32, x: F32) -> None:
    """x += t, through the norm after the product if it has one."""
    if product.post_norm:
        kernels.rms_norm(t, vectors[product.post_norm], spec.norm_eps, t)
    kernels.add(x, t)
