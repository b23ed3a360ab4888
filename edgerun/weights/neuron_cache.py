"""Neurons of sparse feed-forwards, the hot ones in memory, the others read when they have fired.

The gate is computed first, exactly, and says which neurons fire; nothing is predicted and nothing is lost
(PowerInfer-2's neuron clusters, without its predictor). A layer has a fixed number of slots, because every layer is
used once a token; in it the neurons stay that fired most often lately. What fires together and lies close is read in
one piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgerun.errors import UsageError
from edgerun.events import never
from edgerun.kernels.interface import F32, I32, Neurons
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import BlockLayout
from edgerun.weights.flash import DEMAND, Reading
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
        self._reading = Reading(reader.flash)  # the last one: done before the next one begins
        self._lease: object = None
        for layer in range(len(layouts)) if scores is not None else ():
            hottest = np.argsort(-self.scores[layer], kind="stable")[: self.slots]
            hot = np.sort(hottest[self.scores[layer][hottest] > 0]).astype(np.int32)
            self._finish(layer, hot, self._read(layer, hot, hot[:0], never), never)

    def begin(self) -> None:
        """A call of the decoder begins: neurons that an interrupted one had are given back. (What it began to read must
        land before its slots are used: the next reading sees to that.)"""
        self._lease = None

    @contextmanager
    def lease(self, layer: int, ids: I32, cancelled: Callable[[], bool] = never) -> Iterator[Iterator[NeuronBatch]]:
        """See `WeightStore.neurons`."""
        if self._lease is not None:
            raise UsageError("neurons of another layer are in use: give them back first")
        self._lease = lease = object()
        try:
            yield self._batches(lease, layer, ids, cancelled)
        finally:
            if self._lease is lease:
                self._lease = None

    def _batches(self, lease: object, layer: int, ids: I32, cancelled: Callable[[], bool]) -> Iterator[NeuronBatch]:
        score = self.scores[layer]
        score *= np.float32(_DECAY)
        score[ids] += np.float32(1.0)
        for low in range(0, len(ids), self.slots):
            if self._lease is not lease:
                raise UsageError(f"these neurons of layer {layer} were given back")
            yield self._batch(layer, ids[low : low + self.slots], cancelled)

    def _batch(self, layer: int, ids: I32, cancelled: Callable[[], bool]) -> NeuronBatch:
        slots = self._slot_of[layer, ids]
        here = slots >= 0
        missing = ids[~here]
        self.stats.neuron_hits += len(ids) - len(missing)
        self.stats.neuron_misses += len(missing)
        slots[~here] = self._read(layer, missing, slots[here], cancelled)
        every = self._neurons(layer, ids, slots)
        ready = every if here.all() else self._neurons(layer, ids[here], slots[here])

        def rest() -> Neurons | None:
            if not len(missing):
                return None
            began = time.perf_counter()
            self._finish(layer, missing, slots[~here], cancelled)
            self.stats.neuron_stall_s += time.perf_counter() - began
            return self._neurons(layer, missing, slots[~here])

        return NeuronBatch(ready, rest, every)

    def _read(self, layer: int, missing: I32, kept: I32, cancelled: Callable[[], bool]) -> I32:
        """Take the slots of those that fired least, but for the slots `kept`, and begin to read `missing` to them.
        Nobody is there until `_finish`: an interrupt on the way loses what was there, and nothing else."""
        if not len(missing):
            return missing
        self._reading.give_up(cancelled)
        table, owner = self._slot_of[layer], self._owner[layer]
        value = np.where(owner >= 0, self.scores[layer, owner], np.float32(-1.0))
        value[kept] = np.inf
        slots = np.argpartition(value, len(missing) - 1)[: len(missing)].astype(np.int32)
        gone = owner[slots]
        table[gone[gone >= 0]] = -1
        owner[slots] = -1
        self._reading = reading = Reading(self._reader.flash)
        pieces = self._reader.neuron_pieces(
            self._layouts[layer], layer, missing, slots, self._memory[layer], reading.landed
        )
        reading.begin(pieces, DEMAND)
        return slots

    def _finish(self, layer: int, missing: I32, slots: I32, cancelled: Callable[[], bool]) -> None:
        """Wait for what `_read` began. After an error whoever asks next tries again."""
        self._reading.wait(cancelled)
        self._owner[layer, slots] = missing  # first: whoever is found in a slot is known to own it
        self._slot_of[layer, missing] = slots

    def _neurons(self, layer: int, ids: I32, slots: I32) -> Neurons:
        up, down = self._layouts[layer].neurons
        return Neurons(ids, slots, self._memory[layer], up.type, down.type, up.shape[1])
