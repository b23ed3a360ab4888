"""Experts in equal slots of one arena: who is there, who is coming, who must leave.

A slot holds one expert: gate, up and down in the kernels' layout, each read and readable by itself. (Slots of single
matrices would suit files where down has more bits than gate no better: all slots would be as large as the largest.)
All state changes under one lock, which is never held while reading or computing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from edgerun.device import give_back_free_memory
from edgerun.kernels.interface import I32, Expert, Matrix
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import block_bytes, slot_blocks
from edgerun.weights.catalog import Catalog
from edgerun.weights.eviction import Eviction
from edgerun.weights.flash import BACKGROUND, DEMAND, PREDICTED, Piece
from edgerun.weights.tensor_reader import TensorReader

_LEAST_PRECISION = 0.6  # of the reads that hints began, those that must have been of use; less costs more than it gains
_MEMORY = 16  # reads over which that is averaged, layer by layer
_RETRY = 32  # hints after which a layer whose hints were bad is given another chance
_MOST_PREDICTED = 48  # pieces that may wait at once: more would only be cancelled


@dataclass
class CacheStats:
    """Counts since the start. A hit was complete when asked for; `late` were predicted or asked for twice and still
    on their way; misses had not been asked for. Bytes are of the file."""

    hits: int = 0
    late: int = 0
    misses: int = 0
    stall_s: float = 0.0
    predicted: int = 0  # reads that a hint began
    predicted_used: int = 0
    evictions: int = 0

    @property
    def uses(self) -> int:
        return self.hits + self.late + self.misses


class _Entry:
    """One expert in a slot, or on its way there."""

    __slots__ = ("error", "expected", "expert", "hinted", "layer", "left", "pieces", "slot", "users", "waiter")

    def __init__(self, layer: int, slot: int, expert: Expert) -> None:
        self.layer = layer
        self.slot = slot
        self.expert = expert
        self.pieces: list[Piece] = []
        self.left = 0  # pieces that are not here
        self.users = 0
        self.expected = False  # hinted at and not yet asked for: stays until its layer has passed
        self.hinted = False  # its reading was begun by a hint
        self.error: Exception | None = None
        self.waiter: SimpleQueue[_Entry] | None = None


class ExpertCache:
    """`slots` experts of a model. One thread asks, reader threads deliver."""

    def __init__(self, catalog: Catalog, reader: TensorReader, eviction: Eviction, slots: int) -> None:
        self.stats = CacheStats()
        self.slots = slots
        self._catalog = catalog
        self._reader = reader
        self._eviction = eviction
        self._n_experts = catalog.n_experts
        self._layouts = slot_blocks(catalog, reader.kernels)
        self.slot_bytes = block_bytes(self._layouts)
        self._arena = Arena(slots * self.slot_bytes)
        self._matrices: dict[tuple[int, int], tuple[Matrix, Matrix, Matrix]] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # a slot may have become free
        self._table: list[list[_Entry | None]] = [[None] * self._n_experts for _ in catalog.layers]
        self._free = list(range(slots - 1, -1, -1))
        self._keys = np.zeros(slots, np.int64)  # of the expert in each slot
        self._locked = np.ones(slots, bool)  # may not be evicted: in use, on its way, expected or empty
        self._expected: list[list[_Entry]] = [[] for _ in catalog.layers]
        self._precision = [1.0] * len(catalog.layers)
        self._distrusted = [0] * len(catalog.layers)
        self._waiting_predicted = 0
        self._lent = 0

    # -- asking -------------------------------------------------------------------------------------------------

    def get(self, layer: int, ids: I32, uses: I32, tokens: int) -> Iterator[list[Expert]]:
        """See `WeightStore.experts`."""
        landed: SimpleQueue[_Entry] = SimpleQueue()
        ready: list[_Entry] = []
        pending: list[_Entry] = []
        later: list[int] = []
        with self._lock:
            self._eviction.used(layer, ids, uses, tokens)
            table = self._table[layer]
            wanted = ids.tolist()
            for i in wanted:
                entry = table[i]
                if entry is None:
                    later.append(i)
                    continue
                entry.users += 1
                self._locked[entry.slot] = True
                if entry.hinted:
                    entry.hinted = False
                    self._waiting_predicted -= entry.left
                    self.stats.predicted_used += 1
                    self._precision[layer] += (1.0 - self._precision[layer]) / _MEMORY
                if entry.left:
                    entry.waiter = landed
                    pending.append(entry)
                else:
                    ready.append(entry)
            self._end_expectations(layer, set(wanted))
            self.stats.hits += len(ready)
            self.stats.late += len(pending)
            self.stats.misses += len(later)
            late = [piece for entry in pending for piece in entry.pieces]
            pending += self._claim_for(layer, later, landed)
        if late:
            self._reader.flash.promote(late)
        return self._deliver(layer, ready, pending, later, landed)

    def _deliver(
        self,
        layer: int,
        ready: list[_Entry],
        pending: list[_Entry],
        later: list[int],
        landed: SimpleQueue[_Entry],
    ) -> Iterator[list[Expert]]:
        """`ready` first, `pending` as they land, `later` when slots become free."""
        outstanding = len(pending)
        held = ready
        everyone = [*ready, *pending]
        try:
            while True:
                if held:
                    yield [entry.expert for entry in held]
                    self._release(held)
                    everyone = [entry for entry in everyone if entry.users]
                if later:
                    with self._lock:
                        new = self._claim_for(layer, later, landed)
                        while not (new or outstanding):  # all slots are being filled with something else
                            self._changed.wait()
                            new = self._claim_for(layer, later, landed)
                    outstanding += len(new)
                    everyone += new
                if not outstanding:
                    return
                began = time.perf_counter()
                held = [landed.get()]
                self.stats.stall_s += time.perf_counter() - began
                while not landed.empty():
                    held.append(landed.get())
                outstanding -= len(held)
                for entry in held:
                    if entry.error is not None:
                        raise entry.error
        finally:
            self._release([entry for entry in everyone if entry.users])

    def expect(self, layer: int, ids: Sequence[int], *, only_when_idle: bool = False) -> None:
        """Begin reading these with what bandwidth is left over; they stay until the layer has been passed."""
        if only_when_idle and self._reader.flash.waiting:
            return
        with self._lock:
            room = self.slots // 2 - sum(map(len, self._expected))  # the others must find slots too
            if self._waiting_predicted > _MOST_PREDICTED or room <= 0 or not self._trusts(layer):
                return
            table = self._table[layer]
            missing = []
            for i in ids[:room]:
                entry = table[i]
                if entry is None:
                    missing.append(i)
                elif not entry.expected:
                    entry.expected = True
                    self._locked[entry.slot] = True
                    self._expected[layer].append(entry)
            for entry in self._claim(layer, missing):
                entry.expected = entry.hinted = True
                self._expected[layer].append(entry)
                self.stats.predicted += 1
                self._waiting_predicted += len(entry.pieces)
                self._reader.flash.submit(entry.pieces, PREDICTED)

    def fill(self, keys: Sequence[int]) -> None:
        """Read these (layer * experts + id) into empty slots in the background, in this order."""
        with self._lock:
            for key in keys:
                layer, i = divmod(int(key), self._n_experts)
                if not self._free:
                    return
                if self._table[layer][i] is None:
                    for entry in self._claim(layer, [i]):
                        self._reader.flash.submit(entry.pieces, BACKGROUND)

    @contextmanager
    def lend(self, n_bytes: int) -> Iterator[None]:
        """Give the memory of some slots, the least wanted ones, back to the system for a while."""
        lent: list[int] = []
        with self._lock:
            for layer in range(len(self._expected)):
                self._end_expectations(layer, set())
            count = min(-(-n_bytes // self.slot_bytes), self.slots - self._lent - 2)
            while len(self._free) < count:
                self._evict(count - len(self._free))
                if len(self._free) < count:
                    self._changed.wait()  # the others are being filled
            lent = [self._free.pop() for _ in range(max(0, count))]
            self._lent += len(lent)
        for slot in lent:
            self._arena.release(slot * self.slot_bytes, self.slot_bytes)
        try:
            yield
        finally:
            give_back_free_memory()
            with self._lock:
                self._free += lent
                self._lent -= len(lent)
                self._changed.notify_all()

    def resident(self) -> list[tuple[int, int]]:
        """(layer, id) of what is complete."""
        with self._lock:
            return [
                (layer, i)
                for layer, table in enumerate(self._table)
                for i, entry in enumerate(table)
                if entry is not None and not entry.left
            ]

    # -- under the lock -----------------------------------------------------------------------------------------

    def _claim_for(self, layer: int, later: list[int], landed: SimpleQueue[_Entry]) -> list[_Entry]:
        """Begin reading as many of `later` as there are slots; those are taken off the list."""
        if not later:
            return []
        entries = self._claim(layer, later)
        del later[: len(entries)]
        for entry in entries:
            entry.users = 1
            entry.waiter = landed
        self._reader.flash.submit([piece for entry in entries for piece in entry.pieces], DEMAND)
        return entries

    def _claim(self, layer: int, ids: Sequence[int]) -> list[_Entry]:
        """Slots for the first of `ids`, as far as there are free ones or some to evict; nothing is submitted."""
        if not ids:
            return []
        if len(self._free) < len(ids):
            self._evict(len(ids) - len(self._free))
        entries = []
        for i in ids:
            if not self._free:
                break
            slot = self._free.pop()
            entry = _Entry(layer, slot, Expert(i, *self._slot_matrices(layer, slot)))
            self._keys[slot] = layer * self._n_experts + i
            self._locked[slot] = True
            self._table[layer][i] = entry
            self._make_pieces(entry)
            entries.append(entry)
        return entries

    def _evict(self, count: int) -> None:
        candidates = np.flatnonzero(~self._locked)
        if len(candidates) > count:
            ranks = self._eviction.ranks(self._keys[candidates])
            candidates = candidates[np.argpartition(ranks, count - 1)[:count]]
        for slot in candidates.tolist():
            layer, i = divmod(int(self._keys[slot]), self._n_experts)
            self._drop(layer, i, slot)
            self.stats.evictions += 1

    def _drop(self, layer: int, i: int, slot: int) -> None:
        self._table[layer][i] = None
        self._locked[slot] = True
        self._free.append(slot)

    def _trusts(self, layer: int) -> bool:
        """Whether hints for this layer have been worth their reads; now and then they may show that they are again."""
        if self._precision[layer] >= _LEAST_PRECISION:
            return True
        self._distrusted[layer] = (self._distrusted[layer] + 1) % _RETRY
        return self._distrusted[layer] == 0

    def _end_expectations(self, layer: int, wanted: set[int]) -> None:
        """The layer is here: what was expected and is not wanted need not be read, or may leave."""
        expected, self._expected[layer] = self._expected[layer], []
        for entry in expected:
            entry.expected = False
            if entry.expert.id in wanted:
                continue
            if entry.hinted and wanted:
                self._precision[layer] -= self._precision[layer] / _MEMORY
            if entry.left:
                gone = self._reader.flash.cancel(entry.pieces)
                self._waiting_predicted -= len(gone)
                if len(gone) == len(entry.pieces):
                    self._drop(layer, entry.expert.id, entry.slot)
                    continue
                if gone:  # begun: finish it, now that part of it is here
                    again = [piece for piece in entry.pieces if id(piece) in gone]
                    self._waiting_predicted += len(again)
                    self._reader.flash.submit(again, PREDICTED)
            else:
                entry.hinted = False
                self._locked[entry.slot] = False

    def _slot_matrices(self, layer: int, slot: int) -> tuple[Matrix, Matrix, Matrix]:
        layout = self._layouts[layer]
        known = self._matrices.get((slot, layout.number))
        if known is None:
            base, made = slot * self.slot_bytes, []
            for info, offset, size in layout.parts:
                memory = self._arena.bytes[base + offset : base + offset + size]
                made.append(self._reader.kernels.matrix_in(memory, info.type, *info.shape[-2:]))
            known = self._matrices[slot, layout.number] = (made[0], made[1], made[2])
        return known

    def _make_pieces(self, entry: _Entry) -> None:
        def done(n_bytes: int) -> None:
            self._landed(entry, None)

        def failed(error: Exception) -> None:
            self._landed(entry, error)

        expert, base = entry.expert, entry.slot * self.slot_bytes
        entry.pieces = self._reader.block_pieces(
            self._layouts[entry.layer],
            entry.layer * self._n_experts + expert.id,
            expert.id,
            self._arena.bytes[base : base + self.slot_bytes],
            (expert.gate, expert.up, expert.down),
            done,
            failed,
        )
        entry.left = len(entry.pieces)

    # -- readers ------------------------------------------------------------------------------------------------

    def _landed(self, entry: _Entry, error: Exception | None) -> None:
        """A piece is in its place, or will never be."""
        with self._lock:
            entry.left -= 1
            if entry.hinted:
                self._waiting_predicted -= 1
            entry.error = entry.error or error
            if entry.left:
                return
            entry.pieces.clear()
            if entry.error is not None:  # whoever asks next tries again
                self._table[entry.layer][entry.expert.id] = None
                if entry in self._expected[entry.layer]:
                    self._expected[entry.layer].remove(entry)
            if entry.waiter is not None:
                waiter, entry.waiter = entry.waiter, None
                waiter.put(entry)
            elif entry.error is not None:
                self._free.append(entry.slot)
            elif not entry.expected and not entry.users:
                self._locked[entry.slot] = False
            self._changed.notify_all()

    def _release(self, entries: Sequence[_Entry]) -> None:
        """The caller is done with these, whether they came or not."""
        with self._lock:
            for entry in entries:
                entry.users -= 1
                if entry.users:
                    continue
                if entry.left:
                    entry.waiter = None  # nobody waits any more; it lands all the same
                elif entry.error is not None:
                    self._free.append(entry.slot)
                elif not entry.expected:
                    self._locked[entry.slot] = False
