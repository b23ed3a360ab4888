"""A model's layers as plans of blocks: what a file must hold, what a layer computes, keeps and costs, all follow from
here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from edgerun.models.blocks.absent import AbsentFeedForward, AbsentMixer
from edgerun.models.blocks.attention import Attention, attention_of
from edgerun.models.blocks.closing import Closing, closing_of
from edgerun.models.blocks.declared import Product, ProductName, Tensor
from edgerun.models.blocks.dense import Dense, dense_of
from edgerun.models.blocks.latent_attention import LatentAttention, latent_attention_of
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.blocks.mixtures import mixture_of
from edgerun.models.blocks.neurons import SparseNeurons, neurons_of
from edgerun.models.scratch import Layout
from edgerun.models.spec import ModelSpec


@dataclass(frozen=True)
class LayerPlan:
    """A layer: how positions see each other, then what each does for itself, then what some families end with."""

    mixer: Attention | LatentAttention | AbsentMixer
    feed_forward: Dense | SparseNeurons | Mixture | AbsentFeedForward
    closing: Closing | None = None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By their names without layer and `.weight`."""
        return {**self.mixer.tensors, **self.feed_forward.tensors, **(self.closing.tensors if self.closing else {})}

    @cached_property
    def products(self) -> dict[ProductName, Product]:
        """What a prompt backend computes, in the order of the layer."""
        return {each.name: each for each in (*self.mixer.products, *self.feed_forward.products)}

    @property
    def mixture(self) -> Mixture | None:
        """Its experts, if it has some."""
        return self.feed_forward if isinstance(self.feed_forward, Mixture) else None

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        """Of all buffers that its blocks use."""
        closing = self.closing.layouts if self.closing else ()
        return *self.mixer.layouts, *self.feed_forward.layouts, *closing


@lru_cache(maxsize=16)
def plan_of(spec: ModelSpec) -> tuple[LayerPlan, ...]:
    """The plan of every layer."""
    return tuple(_layer(spec, layer) for layer in range(spec.n_layers))


def _layer(spec: ModelSpec, layer: int) -> LayerPlan:
    numbers = spec.layers[layer]
    mixer = (attention_of if numbers.latent is None else latent_attention_of)(spec, layer)
    if numbers.n_experts:
        return LayerPlan(mixer, mixture_of(spec, layer), closing_of(spec))
    return LayerPlan(mixer, (neurons_of if spec.sparse else dense_of)(spec, layer), closing_of(spec))
