"""Which experts a layer is going to choose, said before it is known, by whoever has been right about that layer.

Five sources. The next layer's router, the one after it, and the two after that, applied to this layer's input (the
residual stream changes little from layer to layer): right about most layers of most models, wrong where a layer
rewrites the stream, and mute about the first. The token itself: the first layers choose by little else, so what they
chose when it last came is a good guess. Affinity (ExFlow): which experts followed, in earlier tokens, on those that the
layer before has chosen.

Every guess is compared with what comes, followed or not, and for each layer the source with the best record speaks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.interface import F32, I32

ROUTER, ROUTER_TWO_AHEAD, ROUTER_FURTHER, TOKEN, AFFINITY = range(5)
SOURCES = ("router", "router two ahead", "router further ahead", "token", "affinity")
MOST_AHEAD = 4  # layers whose routers are asked
ROUTERS = (ROUTER, ROUTER_TWO_AHEAD, *(ROUTER_FURTHER,) * (MOST_AHEAD - 2))  # by how many layers they look ahead
TOKEN_LAYERS = 2  # that a token's last choices are kept of
_LEAST_ACCURACY = 0.5  # a guess that is more often wrong is not worth a read
_MEMORY = 32  # tokens over which a record is averaged
_PRIOR = (0.8, 0.6, 0.5, 0.3, 0.3)  # routers are believed until they err; statistics must earn it
_GOOD_ROUTER = 0.9  # where it is as good as this, guesses are judged and affinity is learned only every so often:
_SOMETIMES = 8  # that takes a tenth of what Python takes of a token


class ExpertPredictor:
    """For a model of these numbers, some of whose layers may have no experts. One thread uses it."""

    def __init__(self, layers: int, experts: int, vocab: int) -> None:
        self.accuracy: F32 = np.repeat(np.array(_PRIOR, np.float32)[:, None], layers, axis=1)  # (sources, layers)
        self.judged: NDArray[np.int64] = np.zeros(self.accuracy.shape, np.int64)  # guesses compared
        self._vocab = vocab
        self._last: dict[int, I32] = {}  # of the first layers that choose: (vocab, used) ids + 1; 0: never seen
        self._after: F32 = np.zeros((layers, experts, experts), np.float32)  # [layer, before, then]: how often
        self._guesses: list[dict[int, I32]] = [{} for _ in range(layers)]
        self._tokens: I32 = np.zeros(0, np.int32)
        self._before: tuple[int, I32] | None = None  # the layer that chose before this one, and what
        self._next: dict[int, int] = {}  # of layers that choose: which does after it
        self._count = 0

    def begin(self, tokens: I32) -> list[tuple[int, I32]]:
        """Tokens enter the first layer: what to expect of the layers that choose by the token, [(layer, ids)]."""
        self._tokens, self._before = tokens, None
        self._count += 1
        for guesses in self._guesses:
            guesses.clear()
        if len(tokens) != 1:
            return []
        told = []
        for layer, last in self._last.items():
            seen = last[tokens[0]]
            if seen[0]:
                self._guesses[layer][TOKEN] = seen - 1
                ids = self.best(layer)
                if ids is not None:
                    told.append((layer, ids))
        return told

    def hear(self, layer: int, ids: I32, source: int = ROUTER) -> None:
        """A router's guess, likeliest first."""
        self._guesses[layer][source] = ids

    def best(self, layer: int) -> I32 | None:
        """The guess of the source with the best record, or None when none is good enough."""
        guesses, record = self._guesses[layer], self.accuracy[:, layer]
        source = max(guesses, key=record.__getitem__, default=None)
        return guesses[source] if source is not None and record[source] >= _LEAST_ACCURACY else None

    def chosen(self, layer: int, ids: I32) -> None:
        """What the layer's router chose for each token, (T, used): judge the guesses, and learn."""
        if len(ids) != len(self._tokens):  # a later part of a prompt's wave is not told apart
            return
        if layer not in self._last and len(self._last) < TOKEN_LAYERS:
            self._last[layer] = np.zeros((self._vocab, ids.shape[1]), np.int32)
        if layer in self._last:
            self._last[layer][self._tokens] = ids + 1
        before, self._before = self._before, (layer, ids)
        if before is not None:
            self._next[before[0]] = layer
        if len(ids) > 1:
            if before is not None:
                np.add.at(self._after[layer], (before[1][:, :, None], ids[:, None, :]), np.float32(1.0))
            return
        if not self._is_sure(layer):
            real = set(ids[0].tolist())
            for source, guess in self._guesses[layer].items():
                right = len(real.intersection(guess.tolist())) / len(real)
                self.judged[source, layer] += 1
                self.accuracy[source, layer] += (right - self.accuracy[source, layer]) / _MEMORY
            if before is not None:
                self._after[layer][before[1][0][:, None], ids[0]] += np.float32(1.0)
        after = self._next.get(layer)
        if after is not None and not self._is_sure(after):
            likely = self._after[after, ids[0]].sum(axis=0)
            if likely.any():
                self._guesses[after][AFFINITY] = np.argsort(-likely, kind="stable")[: ids.shape[1]].astype(np.int32)

    def wanted(self, later: Sequence[Sequence[int]], trusted: Sequence[bool]) -> list[int]:
        """At each layer, of how many of those after it (`later`) the routers' guesses are worth a read; -1: of the
        first somebody else's is better, which is not known before this layer has chosen."""
        routers = self.accuracy[:TOKEN].max(axis=0).tolist()
        affinity = self.accuracy[AFFINITY].tolist()
        found = []
        for layers in later:
            count = 0
            while count < len(layers) and trusted[layers[count]] and routers[layers[count]] >= _LEAST_ACCURACY:
                count += 1
            best = max(routers[layers[0]], _LEAST_ACCURACY) if layers else np.inf
            found.append(-1 if layers and affinity[layers[0]] > best else count)
        return found

    def _is_sure(self, layer: int) -> bool:
        """Whether a layer's router is so good that this token need not be compared with it."""
        return bool(self._count % _SOMETIMES) and bool(self.accuracy[ROUTER, layer] >= _GOOD_ROUTER)
