"""What all stores answer alike: for weights that stay in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from edgerun.errors import UsageError
from edgerun.events import never
from edgerun.kernels.interface import F32, I32, Matrix
from edgerun.kernels.recording import ExpertPlaces
from edgerun.weights.store import ExpertLease, LayerLease, LayerWeights, NeuronLease


class LastingWeights:
    """The plainest `WeightStore`: its layers are lent as they lie, nothing is streamed, and there is nothing to learn.
    A store takes over what it does otherwise."""

    _outside: dict[str, F32]  # tensors outside the layers
    _head: Matrix
    _outer: dict[str, Matrix]  # matrices outside the layers, by their whole names
    _layers: list[LayerWeights]

    def head(self) -> Matrix:
        return self._head

    def outer(self, name: str) -> Matrix:
        return self._outer[name]

    def vector(self, name: str) -> F32 | None:
        return self._outside.get(name)

    def begin(self) -> None:
        """What is lent stays where it is."""

    def vectors(self, layer: int) -> dict[str, F32]:
        return self._layers[layer].vectors

    def layer(self, layer: int, cancelled: Callable[[], bool] = never) -> LayerLease:
        return contextlib.nullcontext(self._layers[layer])

    def experts(
        self,
        layer: int,
        ids: I32,
        uses: I32 | None = None,
        tokens: int = 1,
        cancelled: Callable[[], bool] = never,
    ) -> ExpertLease:
        raise UsageError("this model has no experts")

    def neurons(self, layer: int, ids: I32, cancelled: Callable[[], bool] = never) -> NeuronLease:
        raise UsageError("this model's neurons are not lent one by one")

    def routed(self, layer: int, ids: I32) -> None:
        """There is nothing to learn."""

    def places(self, layer: int) -> ExpertPlaces | None:
        return None

    def passed(self, layer: int, lists: I32) -> None:
        """There is nothing to learn."""

    def expect(self, layer: int, ids: I32, distance: int = 1) -> None:
        """Nothing is fetched because of a hint."""

    def lend(self, n_bytes: int, cancelled: Callable[[], bool] = never) -> AbstractContextManager[None]:
        """Memory for activations was set aside."""
        return contextlib.nullcontext()

    def others_hold(self, n_bytes: int) -> None:
        """None of it was used."""
