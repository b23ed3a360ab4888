"""The ranges of a model's activations on a text, by running it there once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.interface import F32
from edgerun.models import Decoder
from edgerun.models.blocks.declared import ProductName
from edgerun.models.prompt import on_backend
from edgerun.prefill.graphs import Range
from edgerun.prefill.hadamard import rotate
from edgerun.prefill.observe import KernelLayers
from edgerun.prefill.ranges import Extremes, LayerRanges
from edgerun.prefill.segments import products_of

MOST_TOKENS = 512


def profile_ranges(
    decoder: Decoder, ids: Sequence[int], *, shadow: bool = True, rotated: bool = False, experts: bool = False
) -> list[LayerRanges]:
    """Of every layer, what its products see of these tokens (at most 512 of them are used). `shadow`: grids may end
    before the outliers do; `rotated`: as seen through `hadamard.rotate`; `experts`: of these too, one range for all of
    a layer, without outliers."""
    if len(ids) < 2:
        raise UsageError("ranges need a text of at least two tokens")
    seen: dict[tuple[int, str], Extremes] = {}

    def see(layer: int, product: ProductName, inner: F32, results: dict[str, F32]) -> None:
        turned = rotated and product in ("qkv", "gate_up")
        for name, values in (
            (product, _unit(decoder, layer, product, inner) if turned else inner),
            *(
                (f"{product}.{out}", rotate(values) if rotated and out == "t" else values)
                for out, values in results.items()
            ),
        ):
            if (layer, name) not in seen:
                seen[layer, name] = Extremes(values.shape[1])
            seen[layer, name].see(values)

    some = ids[:MOST_TOKENS]
    with on_backend(decoder, KernelLayers(see, experts=experts)):
        decoder.forward(some, decoder.new_cache(len(some)), logits="none")
    spec = decoder.spec
    return [_layer(seen, layer, tuple(products_of(spec, layer)), shadow) for layer in range(spec.n_layers)]


def _unit(decoder: Decoder, layer: int, product: ProductName, inner: F32) -> F32:
    """A rotated stream's normed rows: their weight has moved into the matrix."""
    weight = decoder.store.vectors(layer)[products_of(decoder.spec, layer)[product].norm]
    return rotate(np.divide(inner, weight, out=np.zeros_like(inner), where=weight != 0))


def _layer(
    seen: dict[tuple[int, str], Extremes], layer: int, products: tuple[ProductName, ...], shadow: bool
) -> LayerRanges:
    kept: dict[str, Range] = {}
    outliers: dict[ProductName, tuple[int, ...]] = {}
    for product in products:
        extremes = seen[layer, product]
        kept[product], beyond = extremes.clipped() if shadow else (extremes.whole(), ())
        if beyond:
            outliers[product] = beyond
    kept |= {name: each.whole() for (of, name), each in seen.items() if of == layer and name not in kept}
    return LayerRanges(kept, outliers)
