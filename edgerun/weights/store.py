"""What the decoder asks of those who hold weights. It cannot tell whether they are resident, streamed or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.events import SpanSink, never
from edgerun.kernels.interface import F32, I32, Expert, Matrix, Neurons
from edgerun.kernels.recording import ExpertPlaces

Mode = Literal["resident", "experts", "layers"]


@dataclass(frozen=True)
class LayerWeights:
    """A layer's dense weights by their GGUF names without `blk.N.` and `.weight`: "attn_q", "attn_norm",
    "attn_q.bias". Matrices are packed; everything with one dimension, and what is small (`catalog.VECTOR_PARTS`), is
    f32, flat."""

    matrices: dict[str, Matrix] = field(default_factory=dict)
    vectors: dict[str, F32] = field(default_factory=dict)


class LeasedMatrices(dict[str, Matrix]):
    """Matrices whose memory will hold another layer: `end` takes them away from whoever kept them."""

    def __init__(self, layer: int, matrices: Mapping[str, Matrix]) -> None:
        super().__init__(matrices)
        self._layer = layer
        self._ended = False

    def end(self) -> None:
        """From now on they cannot be had."""
        self._ended = True
        self.clear()

    def __missing__(self, name: str) -> Matrix:
        if self._ended:
            raise UsageError(f"{name} of layer {self._layer} was asked for after the layer was given back")
        raise KeyError(name)


@dataclass(frozen=True)
class NeuronBatch:
    """Neurons with ascending ids: those that can be read, `rest`, which waits for the others, and all of them, to be
    read after that."""

    ready: Neurons
    rest: Callable[[], Neurons | None]
    every: Neurons


LayerLease = AbstractContextManager[LayerWeights]
ExpertLease = AbstractContextManager[Iterator[list[Expert]]]
NeuronLease = AbstractContextManager[Iterator[NeuronBatch]]


class WeightStore(Protocol):
    """One model's weights, lent for a while: what `layer`, `experts` and `neurons` give is there inside their `with`
    block and not after it. Of layers, experts and neurons, at most one each of what is streamed may be lent at a time;
    to ask for another is a UsageError, as is to use what was given back where that can be told.

    Where there is something to wait for, `cancelled` is asked now and then; Cancelled is raised when it says so."""

    @property
    def mode(self) -> Mode:
        """What stays in memory: everything, or all but these."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether dense weights stay where they are, so that addresses may be remembered."""
        ...

    @property
    def lookahead(self) -> int:
        """For how many layers ahead `expect` does anything with what it is told, so that guessing is worth its time."""
        ...

    @property
    def wave_tokens(self) -> int:
        """Tokens of a prompt that should pass a layer together because its weights come from far; 0: any."""
        ...

    def embedding(self, ids: NDArray[np.int32]) -> F32:
        """(T,) token ids -> their rows (T, d_model) f32, a new array."""
        ...

    def layer_embedding(self, ids: NDArray[np.int32]) -> F32:
        """(T,) token ids -> what each layer is fed beside, (T, layers * width) f32, a new array: rows of
        LAYER_EMBEDDING, of models that have it."""
        ...

    def outer(self, name: str) -> Matrix:
        """A matrix outside the layers by its whole name ("per_layer_model_proj.weight"), of models that have it."""
        ...

    def head(self) -> Matrix:
        """(vocab, d_model), the embedding itself where the model ties them."""
        ...

    def vector(self, name: str) -> F32 | None:
        """A tensor outside the layers ("output_norm", "rope_freqs"), or None."""
        ...

    def begin(self) -> None:
        """A call of the decoder begins: what an interrupted one was lent is given back. Nothing is lent now."""
        ...

    def vectors(self, layer: int) -> dict[str, F32]:
        """The layer's norms, biases and scales, which are always there."""
        ...

    def layer(self, layer: int, cancelled: Callable[[], bool] = never) -> LayerLease:
        """The layer's dense weights, once they are here. The layer that is lent may be asked for again inside."""
        ...

    def experts(
        self,
        layer: int,
        ids: I32,
        uses: I32 | None = None,
        tokens: int = 1,
        cancelled: Callable[[], bool] = never,
    ) -> ExpertLease:
        """The experts `ids` (unique, ascending) in batches as they become ready, resident ones first.
        `uses` (n,): how many of the `tokens` chose each; None: all.

        All that is missing is asked for at once, before the first batch is taken. A batch may be used until the
        next one is taken."""
        ...

    def neurons(self, layer: int, ids: I32, cancelled: Callable[[], bool] = never) -> NeuronLease:
        """The neurons `ids` (unique, ascending) of a sparse feed-forward, in ascending batches of as many as fit. A
        batch may be used until the next one is taken."""
        ...

    def routed(self, layer: int, ids: I32) -> None:
        """What a layer's router chose for each token, (T, used), to learn from; `experts` is called next."""
        ...

    def places(self, layer: int) -> ExpertPlaces | None:
        """Where the layer's experts lie, for launches that find them there; None: only `experts` lends them."""
        ...

    def passed(self, layer: int, lists: I32) -> None:
        """A token found the layer's experts by `places`: lists (1 + guesses, used), whom its router chose, then whom
        those of the next layers would have chosen."""
        ...

    def expect(self, layer: int, ids: I32, distance: int = 1) -> None:
        """A hint that these will be asked for, likeliest first, by a router `distance` layers ahead of the one that is
        being computed; 0: they will be, the router has chosen. Never blocks, may be ignored."""
        ...

    def lend(self, n_bytes: int, cancelled: Callable[[], bool] = never) -> AbstractContextManager[None]:
        """Within, the caller may take this much memory that the store could use: a prompt's activations, at the cost
        of cached weights. As much of it as there is; a plan sees to it that it suffices."""
        ...

    def others_hold(self, n_bytes: int) -> None:
        """So much of the memory that is set aside for keys and values is in use, or will be at once: the rest may hold
        weights meanwhile. Nothing is lent now."""
        ...

    def watch(self, watcher: SpanSink | None) -> None:
        """Tell somebody (None: nobody any more) of every read, of waits, and of what is read ahead."""
        ...

    def statistics(self) -> dict[str, float]:
        """Counts since the start, of what the store does; empty when it does nothing."""
        ...

    def close(self) -> None:
        """Stop reading and give the memory back. Nothing may be asked of the store afterwards."""
        ...
