"""What recorded launches found of a token's experts, for those who want to know whom it chose: told afterwards, of
several layers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerun.kernels.interface import I32
from edgerun.weights import WeightStore


class FoundExperts:
    """`routed` is told each layer's choices, (1, used) ids."""

    def __init__(self, n_layers: int, store: WeightStore, routed: Callable[[int, I32], None]) -> None:
        self._store = store
        self._routed = routed
        self._noted: list[I32] = [np.zeros(0, np.int32)] * n_layers
        self._used = [0] * n_layers

    def room(self, layer: int, used: int, guesses: int) -> I32:
        """Where a layer's launch notes what it finds: see `kernels.recording.TokenExperts`."""
        room = self._noted[layer] = np.zeros(1 + used * (1 + guesses), np.int32)
        self._used[layer] = used
        return room

    def what(self, layer: int) -> int:
        """ALL, NOT_ALL_WANTED or NOT_ALL."""
        return int(self._noted[layer][0])

    def passed(self, layers: Sequence[int]) -> None:
        """The experts of these layers were there and have done their work."""
        for layer in layers:
            lists = self._noted[layer][1:].reshape(-1, self._used[layer]).copy()  # whoever learns from it may keep it
            self._routed(layer, lists[:1])
            self._store.passed(layer, lists)
