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


class _Reading:
    """Pieces on their way, and what became of them."""

    def __init__(self) -> None:
        self.landed: SimpleQueue[int | Exception] = SimpleQueue()
        self.left = 0

    def take(self) -> Exception | None:
        """Wait for one."""
        result = self.landed.get()
        self.left -= 1
        return result if isinstance(result, Exception) else None


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
            reading = _Reading()
            self._finish(layer, hot, self._read(layer, hot, hot[:0], reading), reading)

    def get(self, layer: int, ids: I32) -> Iterator[NeuronBatch]:
        """See `WeightStore.neurons`."""
        score = self.scores[layer]
        score *= np.float32(_DECAY)
        score[ids] += np.float32(1.0)
        for low in range(0, len(ids), self.slots):
            yield from self._batch(layer, ids[low : low + self.slots])

    def _batch(self, layer: int, ids: I32) -> Iterator[NeuronBatch]:
        slots = self._slot_of[layer, ids]
        here = slots >= 0
        missing = ids[~here]
        self.stats.neuron_hits += len(ids) - len(missing)
        self.stats.neuron_misses += len(missing)
        reading = _Reading()
        try:
            slots[~here] = self._read(layer, missing, slots[here], reading)
            every = self._neurons(layer, ids, slots)
            ready = every if here.all() else self._neurons(layer, ids[here], slots[here])

            def rest() -> Neurons | None:
                if not len(missing):
                    return None
                began = time.perf_counter()
                self._finish(layer, missing, slots[~here], reading)
                self.stats.neuron_stall_s += time.perf_counter() - began
                return self._neurons(layer, missing, slots[~here])

            yield NeuronBatch(ready, rest, every)
        finally:  # the caller may give up, or be interrupted: what a thread has begun must land before its slot is used
            while reading.left:
                reading.take()

    def _read(self, layer: int, missing: I32, kept: I32, reading: _Reading) -> I32:
        """Take the slots of those that fired least, but for the slots `kept`, and begin to read `missing` to them.
        Nobody is there until `_finish`."""
        if not len(missing):
            return missing
        table, owner = self._slot_of[layer], self._owner[layer]
        value = np.where(owner >= 0, self.scores[layer, owner], np.float32(-1.0))
        value[kept] = np.inf
        slots = np.argpartition(value, len(missing) - 1)[: len(missing)].astype(np.int32)
        gone = owner[slots]
        table[gone[gone >= 0]] = -1
        owner[slots] = -1
        pieces = self._reader.neuron_pieces(
            self._layouts[layer], layer, missing, slots, self._memory[layer], reading.landed.put, reading.landed.put
        )
        self._reader.flash.submit(pieces, DEMAND)
        reading.left = len(pieces)
        return slots

    def _finish(self, layer: int, missing: I32, slots: I32, reading: _Reading) -> None:
        """Wait for what `_read` began. After an error whoever asks next tries again."""
        error: Exception | None = None
        while reading.left:
            error = reading.take() or error
        if error is not None:
            raise error
        self._owner[layer, slots], self._slot_of[layer, missing] = missing, slots

    def _neurons(self, layer: int, ids: I32, slots: I32) -> Neurons:
        up, down = self._layouts[layer].neurons
        return Neurons(ids, slots, self._memory[layer], up.type, down.type, up.shape[1])
