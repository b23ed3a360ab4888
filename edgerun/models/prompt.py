"""The seam for prompt backends: where a prompt's dense products are computed when it is not by our kernels.

A backend gets a wave of a prompt to walk through all layers, in whatever order serves it. Attention, keys and values
and the choice of experts stay with the decoder, as do those experts that a backend leaves to it; embeddings and head
are outside. The cache is the decoder's own, so decoding goes on from it without moving anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from edgerun.errors import Cancelled
from edgerun.kernels.interface import F32, I32
from edgerun.kv import KvSequence
from edgerun.models.mixture import RoutedRows

if TYPE_CHECKING:
    from edgerun.models.decoder import Decoder


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


@contextlib.contextmanager
def on_backend(decoder: Decoder, backend: PromptBackend | None) -> Iterator[None]:
    """For a while prompts run there; None: on the kernels."""
    before, decoder.prompt_backend = decoder.prompt_backend, backend
    try:
        yield
    finally:
        decoder.prompt_backend = before


def check(cancelled: Callable[[], bool]) -> None:
    """Raises Cancelled when the caller wants to stop."""
    if cancelled():
        raise Cancelled("stopped by the caller")


class PromptWalk:
    """What the decoder does for a backend while it walks. x (tokens, d): the wave's residual stream."""

    def __init__(self, decoder: Decoder, x: F32, cache: KvSequence, cancelled: Callable[[], bool]) -> None:
        self.x = x
        self.decoder = decoder
        self.spec = decoder.spec
        self._cache = cache
        self.cancelled = cancelled
        self._routed: tuple[F32, list[F32]] | None = None

    def check(self) -> None:
        """Raises Cancelled when the caller wants to stop."""
        check(self.cancelled)

    def attend(self, layer: int, first: int, q: F32, k: F32, v: F32) -> F32:
        """Attention of rows first .. of the wave -> (T, heads * head_dim_v), a new array. Earlier rows of the layer
        must have been here before."""
        decoder, s = self.decoder, self.decoder.scratch(len(q))
        s.q[:], s.k[:], s.v[:] = q, k, v
        decoder.attend(layer, decoder.store.vectors(layer), self._cache, s, self._cache.length + first)
        return s.o.copy()

    def route(self, layer: int) -> None:
        """Where the family's router is early: to be called before a layer's first rows go in."""
        self._routed = self.decoder.route_early(layer, self.x)

    def experts(self, layer: int) -> None:
        """Of a mixture, once all rows of the layer have come out: x += the experts."""
        self.decoder.expert_layer(layer, self.x, self._routed, self.cancelled)

    def route_rows(self, layer: int) -> RoutedRows:
        """The first of three steps that `experts` makes: which rows go where."""
        return self.decoder.route_rows(layer, self.x, self._routed)

    def compute_experts(self, routed: RoutedRows, some: I32) -> None:
        """The second: some experts (ascending) into `routed.parts`; the others' are up to the caller."""
        self.decoder.compute_experts(routed, some, self.cancelled)

    def combine_experts(self, routed: RoutedRows) -> None:
        """The third: x += the sum."""
        self.decoder.combine_experts(routed, self.x)
