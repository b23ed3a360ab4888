"""What the decoder asks of those who hold weights. It cannot tell whether they are resident, streamed or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.interface import F32, I32, Expert, Matrix, Neurons


@dataclass(frozen=True)
class LayerWeights:
    """A layer's dense weights by their GGUF names without `blk.N.` and `.weight`: "attn_q", "attn_norm",
    "attn_q.bias". Matrices are packed, everything with one dimension is f32."""

    matrices: dict[str, Matrix] = field(default_factory=dict)
    vectors: dict[str, F32] = field(default_factory=dict)


@dataclass(frozen=True)
class NeuronBatch:
    """Neurons with ascending ids: those that can be read, `rest`, which waits for the others, and all of them, to be
    read after that."""

    ready: Neurons
    rest: Callable[[], Neurons | None]
    every: Neurons


class WeightStore(Protocol):
    """One model's weights."""

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

    def head(self) -> Matrix:
        """(vocab, d_model), the embedding itself where the model ties them."""
        ...

    def vector(self, name: str) -> F32 | None:
        """A tensor outside the layers ("output_norm", "rope_freqs"), or None."""
        ...

    def dense(self, layer: int) -> LayerWeights:
        """Returns when the layer's dense weights can be read."""
        ...

    def experts(self, layer: int, ids: I32, uses: I32 | None = None, tokens: int = 1) -> Iterator[list[Expert]]:
        """The experts `ids` (unique, ascending) in batches as they become ready, resident ones first.
        `uses` (n,): how many of the `tokens` chose each; None: all.

        All that is missing is asked for at once, before the first batch is taken. A batch may be used until the
        next one is taken, or the iterator ends or is closed."""
        ...

    def neurons(self, layer: int, ids: I32) -> Iterator[NeuronBatch]:
        """The neurons `ids` (unique, ascending) of a sparse feed-forward, in ascending batches of as many as fit. A
        batch may be used until the next one is taken, or the iterator ends or is closed."""
        ...

    def routed(self, layer: int, ids: I32) -> None:
        """What a layer's router chose for each token, (T, used), to learn from; `experts` is called next."""
        ...

    def expect(self, layer: int, ids: I32, distance: int = 1) -> None:
        """A hint that these will be asked for, likeliest first, by a router `distance` layers ahead of the one that is
        being computed; 0: they will be, the router has chosen. Never blocks, may be ignored."""
        ...

    def lend(self, n_bytes: int) -> AbstractContextManager[None]:
        """Within, the caller may take this much memory that the store could use: a prompt's activations, at the cost
        of cached weights. As much of it as there is; a plan sees to it that it suffices."""
        ...

    def statistics(self) -> dict[str, float]:
        """Counts since the start, of what the store does; empty when it does nothing."""
        ...

    def close(self) -> None:
        """Stop reading and give the memory back. Nothing may be asked of the store afterwards."""
        ...
