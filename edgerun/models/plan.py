"""A model's layers as plans of blocks: what a file must hold, what a layer computes, keeps and costs, all follow from
here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from edgerun.models.blocks.attention import Attention, attention_of
from edgerun.models.blocks.declared import Product, ProductName, Tensor
from edgerun.models.blocks.dense import dense_of
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.blocks.mixtures import mixture_of
from edgerun.models.scratch import Layout
from edgerun.models.spec import ModelSpec

# Blocks that few models have are imported where a model has them: all of them together took 25 ms of every start.
if TYPE_CHECKING:
    from edgerun.models.blocks.absent import AbsentFeedForward, AbsentMixer
    from edgerun.models.blocks.alternating import AlternatingStreams
    from edgerun.models.blocks.closing import Closing
    from edgerun.models.blocks.delta_net import DeltaNet
    from edgerun.models.blocks.dense import Dense
    from edgerun.models.blocks.latent_attention import LatentAttention
    from edgerun.models.blocks.laurel import Laurel
    from edgerun.models.blocks.mamba import Mamba
    from edgerun.models.blocks.mixers_beside import MixersBeside
    from edgerun.models.blocks.neurons import SparseNeurons
    from edgerun.models.blocks.nothing import NoFeedForward, NoMixer
    from edgerun.models.blocks.short_convolution import ShortConvolution

    AnyMixer = (
        Attention
        | Laurel
        | LatentAttention
        | ShortConvolution
        | DeltaNet
        | Mamba
        | MixersBeside
        | AbsentMixer
        | NoMixer
    )


@dataclass(frozen=True)
class LayerPlan:
    """A layer: how positions see each other, then what each does for itself, then what some families end with.
    streams: where the residual is several, how the layer computes with one."""

    mixer: AnyMixer
    feed_forward: Dense | SparseNeurons | Mixture | AbsentFeedForward | NoFeedForward
    closing: Closing | None = None
    streams: AlternatingStreams | None = None

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By their names without layer and `.weight`."""
        around = self.closing or self.streams
        return {**self.mixer.tensors, **self.feed_forward.tensors, **(around.tensors if around else {})}

    @cached_property
    def products(self) -> dict[ProductName, Product]:
        """What a prompt backend computes, in the order of the layer."""
        return {each.name: each for each in (*self.mixer.products, *self.feed_forward.products)}

    @property
    def attention(self) -> Attention | LatentAttention | None:
        """What reads and writes keys and values, if something does."""
        if isinstance(self.mixer, Attention):
            return self.mixer
        from edgerun.models.blocks.latent_attention import LatentAttention
        from edgerun.models.blocks.laurel import Laurel
        from edgerun.models.blocks.mixers_beside import MixersBeside

        mixer = self.mixer.attention if isinstance(self.mixer, MixersBeside | Laurel) else self.mixer
        return mixer if isinstance(mixer, Attention | LatentAttention) else None

    @property
    def mixture(self) -> Mixture | None:
        """Its experts, if it has some."""
        return self.feed_forward if isinstance(self.feed_forward, Mixture) else None

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        """Of all buffers that its blocks use."""
        around = self.closing or self.streams
        return *self.mixer.layouts, *self.feed_forward.layouts, *(around.layouts if around else ())


@lru_cache(maxsize=16)
def plan_of(spec: ModelSpec) -> tuple[LayerPlan, ...]:
    """The plan of every layer."""
    return tuple(_layer(spec, layer) for layer in range(spec.n_layers))


def _layer(spec: ModelSpec, layer: int) -> LayerPlan:
    numbers, mixer = spec.layers[layer], _mixer(spec, layer)
    if spec.family.single_blocks and not spec.whole[layer].d_ff:
        from edgerun.models.blocks.nothing import NoFeedForward

        return LayerPlan(mixer, NoFeedForward())
    closing, streams = _around(spec)
    if numbers.n_experts:
        return LayerPlan(mixer, mixture_of(spec, layer), closing)
    if not spec.sparse:
        return LayerPlan(mixer, dense_of(spec, layer), closing, streams)
    from edgerun.models.blocks.neurons import neurons_of

    return LayerPlan(mixer, neurons_of(spec, layer), closing, streams)


def _around(spec: ModelSpec) -> tuple[Closing | None, AlternatingStreams | None]:
    """What every layer ends with, and how it computes with one of several streams."""
    closing = streams = None
    if spec.family.per_layer_inputs:
        from edgerun.models.blocks.closing import closing_of

        closing = closing_of(spec)
    if spec.streams > 1:
        from edgerun.models.blocks.alternating import streams_of

        streams = streams_of(spec)
    return closing, streams


def _mixer(spec: ModelSpec, layer: int) -> AnyMixer:
    family, numbers = spec.family, spec.layers[layer]
    if family.single_blocks and spec.whole[layer].d_ff:
        from edgerun.models.blocks.nothing import NoMixer

        return NoMixer()
    if numbers.conv_taps:
        from edgerun.models.blocks.short_convolution import convolution_of

        return convolution_of(spec, layer)
    if numbers.recurrence is not None:
        return _recurrent(spec, layer)
    if numbers.latent is not None:
        from edgerun.models.blocks.expanded_attention import ExpandedAttention
        from edgerun.models.blocks.latent_attention import LatentAttention, latent_attention_of

        return latent_attention_of(spec, layer, ExpandedAttention if numbers.latent.expanded else LatentAttention)
    mixer = attention_of(spec, layer)
    if family.laurel_rank and isinstance(mixer, Attention):
        from edgerun.models.blocks.laurel import Laurel

        return Laurel(mixer, family.laurel_rank, spec.d_model)
    return mixer


def _recurrent(spec: ModelSpec, layer: int) -> DeltaNet | Mamba | MixersBeside | AbsentMixer:
    if spec.family.recurrence == "delta":
        from edgerun.models.blocks.delta_net import delta_net_of

        return delta_net_of(spec, layer)
    from edgerun.models.blocks.mamba import Mamba, mamba_of
    from edgerun.models.blocks.mixers_beside import MixersBeside

    attention = attention_of(spec, layer) if spec.family.mixers_beside else None
    mamba = mamba_of(spec, layer)
    if isinstance(attention, Attention) and isinstance(mamba, Mamba):
        return MixersBeside(attention, mamba)
    return mamba
