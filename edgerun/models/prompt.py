"""The seam for prompt backends: where a prompt's dense products are computed when it is not by our kernels.

A backend gets a wave of a prompt to walk through all layers, in whatever order serves it. Attention, keys and values
and the choice of experts stay with the decoder, as do those experts that a backend leaves to it; embeddings and head
are outside. The cache is the decoder's own, so decoding goes on from it without moving anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

from edgerun.events import SpanSink
from edgerun.kernels.interface import F32, I32, Expert, Kernels
from edgerun.models.blocks.attention import Attention
from edgerun.models.blocks.base import Cancel, Here, Watch, check
from edgerun.models.blocks.mixture import Mixture
from edgerun.models.blocks.router import Choices
from edgerun.models.chunks import CHUNK
from edgerun.models.layers import Layers
from edgerun.models.places import Places
from edgerun.models.routed_rows import RoutedRows
from edgerun.weights import LayerWeights


class PromptBackend(Protocol):
    """Runs the layers of a prompt."""

    @property
    def name(self) -> str:
        """What computes: a provider and a scheme."""
        ...

    @property
    def least_tokens(self) -> int:
        """Shorter prompts are left to the kernels."""
        ...

    @property
    def wave_tokens(self) -> int:
        """Of a prompt that should pass a layer together, so that there is always something to do for all sides."""
        ...

    def run(self, walk: PromptWalk) -> None:
        """All layers over walk.x, in place. Exceptions leave nothing running."""
        ...

    def watch(self, watcher: SpanSink | None) -> None:
        """Tell somebody (None: nobody any more) what is computed where and when."""
        ...


class RunsPrompts(Protocol):
    """Of `Decoder`."""

    prompt_backend: PromptBackend | None


@contextlib.contextmanager
def on_backend(decoder: RunsPrompts, backend: PromptBackend | None) -> Iterator[None]:
    """For a while prompts run there; None: on the kernels."""
    before, decoder.prompt_backend = decoder.prompt_backend, backend
    try:
        yield
    finally:
        decoder.prompt_backend = before


class PromptWalk:
    """What the decoder does for a backend while it walks. x (tokens, d): the wave's residual stream, whose rows stand
    at `places`."""

    def __init__(self, layers: Layers, x: F32, places: Places, cancelled: Cancel) -> None:
        self.x = x
        self.spec = layers.spec
        self.cancelled = cancelled
        self._layers = layers
        self._places = places
        self._choices: Choices | None = None  # of the mixture that an early router has begun

    @property
    def kernels(self) -> Kernels:
        """Ours."""
        return self._layers.tools.kernels

    @property
    def may_run_ahead(self) -> bool:
        """Whether any layer's weights may be asked for at any time."""
        return self._layers.tools.store.fixed

    def vectors(self, layer: int) -> dict[str, F32]:
        """The layer's norms, biases and scales."""
        return self._layers.tools.store.vectors(layer)

    def check(self) -> None:
        """Raises Cancelled when the caller wants to stop."""
        check(self.cancelled)

    def attend(self, layer: int, first: int, q: F32, k: F32, v: F32) -> F32:
        """Attention of rows first .. of the wave -> (T, heads * head_dim_v), a new array. Earlier rows of the layer
        must have been here before."""
        mixer = self._layers.plan[layer].attention
        assert isinstance(mixer, Attention)  # other mixers are the decoder's
        b = self._layers.scratch(len(q)).of(mixer.layout)
        b.q[:], b.k[:], b.v[:] = q, k, v
        here = self._layers.here(layer, LayerWeights({}, self.vectors(layer)), self.cancelled, len(q))
        mixer.attend(here, self._places.part(slice(first, first + len(q))), b)
        return b.o.copy()

    def dense(self, layer: int, watch: Watch) -> None:
        """All of a layer but its experts, on our kernels, watched."""
        store = self._layers.tools.store
        with store.layer(layer, self.cancelled) as weights:
            here = self._layers.here(layer, weights, self.cancelled, len(self.x), watch)
            self._layers.dense(here, self.x, self._places.cut(CHUNK), self.cancelled)

    def route(self, layer: int) -> None:
        """To be called before a layer's first rows go in: an early router chooses."""
        mixture = self._layers.plan[layer].mixture
        if mixture is not None and mixture.router.early:
            choices = self._layers.choices(mixture, len(self.x))
            with self._here(layer) as here:
                mixture.begin(here, self.x, choices)
            self._choices = choices

    def experts(self, layer: int) -> None:
        """Of a mixture, once all rows of the layer have come out: x += the experts."""
        mixture = self._mixture(layer)
        with self._here(layer) as here:
            mixture.forward(here, self.x, self._chosen(mixture))

    def route_rows(self, layer: int) -> RoutedRows:
        """The first of three steps that `experts` makes: which rows go where."""
        mixture = self._mixture(layer)
        with self._here(layer) as here:
            return mixture.choose(here, self.x, self._chosen(mixture))

    def compute_experts(self, routed: RoutedRows, some: I32) -> None:
        """The second: some experts (ascending) into `routed.parts`; the others' are up to the caller."""
        with self._here(routed.layer) as here:
            self._mixture(routed.layer).compute(here, routed, some, self.cancelled)

    def combine_experts(self, routed: RoutedRows) -> None:
        """The third: x += the sum."""
        with self._here(routed.layer) as here:
            self._mixture(routed.layer).combine(here, routed, self.x)

    @contextlib.contextmanager
    def lent_experts(self, routed: RoutedRows) -> Iterator[Iterator[list[Expert]]]:
        """The weights of all chosen experts, for who computes them itself."""
        mixture, chosen = self._mixture(routed.layer), routed.chosen
        with self._here(routed.layer) as here, mixture.lent(here, routed, chosen, self.cancelled) as batches:
            yield batches

    @contextlib.contextmanager
    def _here(self, layer: int) -> Iterator[Here]:
        with self._layers.tools.store.layer(layer) as weights:
            yield self._layers.here(layer, weights, self.cancelled, len(self.x))

    def _mixture(self, layer: int) -> Mixture:
        mixture = self._layers.plan[layer].mixture
        assert mixture is not None  # the plan is known to who walks
        return mixture

    def _chosen(self, mixture: Mixture) -> Choices:
        """The buffers that an early router has filled already, or new ones."""
        choices, self._choices = self._choices, None
        return self._layers.choices(mixture, len(self.x)) if choices is None else choices
