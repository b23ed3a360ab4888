"""Neurons of sparse feed-forwards, the hot ones in memory, the others read when they have fired.

The gate is computed first, exactly, and says which neurons fire; nothing is predicted and nothing is lost
(PowerInfer-2's neuron clusters, without its predictor). A layer has a fixed number of slots, because every layer is
used once a token; in it the neurons stay that fired most often lately. What fires together and lies close is read in
one piece.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from edgerun.kernels.interface import F32, I32, Neurons
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import BlockLayout
from edgerun.weights.flash import DEMAND
from edgerun.weights.store import NeuronBatch
from edgerun.weights.tensor_reader import TensorReader

_DECAY = 0.98  # of a neuron's score at every call of its layer


@dataclass
class NeuronStats:
    """Counts since the start."""

    neuron_hits: int = 0
    neuron_misses: int = 0
    neuron_stall_s: float = 0.0


class NeuronCache:
    """`slots` neurons of every layer. `scores` (layers, neurons): an earlier run's, whose hottest are read at once.

    Raises ReadError when these cannot be read. One thread asks.
    """

    def __init__(
        self, layouts: Sequence[BlockLayout], reader: TensorReader, slots: int, scores: F32 | None = None
    ) -> None:
        ff = layouts[0].n_neurons
        self.stats = NeuronStats()
        self.slots = min(slots, ff)
        self.scores: F32 = np.zeros((len(layouts), ff), np.float32) if scores is None else scores
        self._layouts = layouts
        self._reader = reader
        widths = [sum(info.row_bytes for info in layout.neurons) for layout in layouts]
        arena = Arena(self.slots * sum(widths)).bytes
        ends = np.cumsum([self.slots * width for width in widths]).tolist()
        self._memory = [
            arena[end - self.slots * width : end].reshape(self.slots, width)
            for end, width in zip(ends, widths, strict=True)
        ]
        self._slot_of = np.full((len(layouts), ff), -1, np.int32)
        self._owner = np.full((len(layouts), self.slots), -1, np.int32)
        for layer in range(len(layouts)) if scores is not None else ():
            hottest = np.argsort(-self.scores[layer], kind="stable")[: self.slots]
            hot = np.sort(hottest[self.scores[layer][hottest] > 0]).astype(np.int32)
            self._wait(layer, hot, *self._read(layer, hot))

    def get(self, layer: int, ids: I32) -> Iterator[NeuronBatch]:
        """See `WeightStore.neurons`."""
        score = self.scores[layer]
        score *= np.float32(_DECAY)
        score[ids] += np.float32(1.0)
        for low in range(0, len(ids), self.slots):
            yield from self._batch(layer, ids[low : low + self.slots])

    def _batch(self, layer: int, ids: I32) -> Iterator[NeuronBatch]:
        here = self._slot_of[layer, ids] >= 0
        missing = ids[~here]
        self.stats.neuron_hits += len(ids) - len(missing)
        self.stats.neuron_misses += len(missing)
        if not len(missing):
            every = self._neurons(layer, ids)
            yield NeuronBatch(every, lambda: None, every)
            return
        ready = self._neurons(layer, ids[here])
        landed, outstanding = self._read(layer, missing, ids[here])
        every = self._neurons(layer, ids)

        def rest() -> Neurons:
            nonlocal outstanding
            waiting, outstanding = outstanding, 0
            began = time.perf_counter()
            self._wait(layer, missing, landed, waiting)
            self.stats.neuron_stall_s += time.perf_counter() - began
            return self._neurons(layer, missing)

        try:
            yield NeuronBatch(ready, rest, every)
        finally:
            if outstanding:  # the caller gave up: what a thread has begun must land before its slot is used again
                self._wait(layer, missing, landed, outstanding)

    def _read(self, layer: int, missing: I32, kept: I32 | None = None) -> tuple[SimpleQueue[int | Exception], int]:
        """Give `missing` the slots of those that fired least, but for `kept`, and begin to read them."""
        table, owner = self._slot_of[layer], self._owner[layer]
        value = np.where(owner >= 0, self.scores[layer, owner], np.float32(-1.0))
        if kept is not None:
            value[table[kept]] = np.inf
        slots = np.argpartition(value, len(missing) - 1)[: len(missing)].astype(np.int32) if len(missing) else missing
        gone = owner[slots]
        table[gone[gone >= 0]] = -1
        owner[slots], table[missing] = missing, slots
        landed: SimpleQueue[int | Exception] = SimpleQueue()
        pieces = self._reader.neuron_pieces(
            self._layouts[layer], layer, missing, slots, self._memory[layer], landed.put, landed.put
        )
        self._reader.flash.submit(pieces, DEMAND)
        return landed, len(pieces)

    def _wait(self, layer: int, missing: I32, landed: SimpleQueue[int | Exception], pieces: int) -> None:
        results = [landed.get() for _ in range(pieces)]
        error = next((each for each in results if isinstance(each, Exception)), None)
        if error is not None:  # whoever asks next tries again
            self._owner[layer, self._slot_of[layer, missing]] = -1
            self._slot_of[layer, missing] = -1
            raise error

    def _neurons(self, layer: int, ids: I32) -> Neurons:
        up, down = self._layouts[layer].neurons
        slots = self._slot_of[layer, ids]
        return Neurons(ids, slots, self._memory[layer], up.type, down.type, up.shape[1])
