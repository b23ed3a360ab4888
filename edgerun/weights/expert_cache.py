"""Experts in equal slots of one arena: who is there, who is coming, who must leave.

A slot holds one expert: gate, up and down in the kernels' layout, each read and readable by itself. (Slots of single
matrices would suit files where down has more bits than gate no better: all slots would be as large as the largest.)
All state changes under one lock, which is never held while reading or computing. It changes between `_torn = True` and
`_torn = False`: whoever finds the mark set came after somebody who was interrupted in between (Ctrl-C, no memory, a
fork), and derives all of the state anew from which entry has which slot.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from edgerun.device import give_back_free_memory
from edgerun.errors import UsageError
from edgerun.events import never
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

    __slots__ = ("doomed", "error", "expected", "expert", "hinted", "layer", "missing", "pieces", "slot", "used")

    def __init__(self, layer: int, slot: int, expert: Expert) -> None:
        self.layer = layer
        self.slot = slot
        self.expert = expert
        self.pieces: list[Piece] = []
        self.missing: set[int] = set()  # ids of the pieces that are not here
        self.used = False  # by the lease
        self.expected = False  # hinted at and not yet asked for: stays until its layer has passed
        self.hinted = False  # its reading was begun by a hint
        self.doomed = False  # leaves as soon as what a thread has begun to read for it has landed
        self.error: Exception | None = None


@dataclass(eq=False)
class _Lease:
    """What a layer's experts are asked for by: pinned while it lasts."""

    layer: int
    ready: list[_Entry] = field(default_factory=list)
    pending: list[_Entry] = field(default_factory=list)  # on their way
    later: list[int] = field(default_factory=list)  # ids that have no slot yet
    news: SimpleQueue[None] = field(default_factory=SimpleQueue)  # something landed, or a slot may have become free


class ExpertCache:
    """`slots` experts of a model. One thread asks, reader threads deliver."""

    def __init__(self, catalog: Catalog, reader: TensorReader, eviction: Eviction, slots: int) -> None:
        self.stats = CacheStats()
        self.slots = slots
        self._reader = reader
        self._eviction = eviction
        self._n_experts = catalog.n_experts
        self._layouts = slot_blocks(catalog, reader.kernels)
        self.slot_bytes = block_bytes(self._layouts)
        self._arena = Arena(slots * self.slot_bytes)
        self._matrices: dict[tuple[int, int], tuple[Matrix, Matrix, Matrix]] = {}
        self._lock = threading.Lock()
        self._torn = False
        # From these two all the rest follows:
        self._owners: list[_Entry | None] = [None] * slots  # of each slot
        self._lent: set[int] = set()  # slots
        self._table: list[list[_Entry | None]] = [[None] * self._n_experts for _ in catalog.layers]
        self._free = list(range(slots - 1, -1, -1))
        self._keys = np.zeros(slots, np.int64)  # of the expert in each slot
        self._locked = np.ones(slots, bool)  # may not be evicted: in use, on its way, expected or empty
        self._expected: list[list[_Entry]] = [[] for _ in catalog.layers]
        self._waiting_predicted = 0  # pieces
        self._lease: _Lease | None = None
        self._news: SimpleQueue[None] | None = None  # of whoever waits
        self._precision = [1.0] * len(catalog.layers)
        self._distrusted = [0] * len(catalog.layers)

    # -- asking -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A call of the decoder begins: what an interrupted one still held is free again."""
        with self._lock:
            if self._torn or self._lease is not None or self._lent:
                self._torn = True
                self._lease = None
                self._lent.clear()
                self._settle()
                self._torn = False

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._lock = threading.Lock()
        self._torn = True
        self._reader.flash.after_fork()

    @contextmanager
    def lease(
        self, layer: int, ids: I32, uses: I32, tokens: int, cancelled: Callable[[], bool] = never
    ) -> Iterator[Iterator[list[Expert]]]:
        """See `WeightStore.experts`."""
        lease = self._ask(layer, ids, uses, tokens)
        try:
            yield self._deliver(lease, cancelled)
        finally:
            self._end(lease)

    def _ask(self, layer: int, ids: I32, uses: I32, tokens: int) -> _Lease:
        wanted = ids.tolist()
        if len(set(wanted)) != len(wanted) or not all(0 <= i < self._n_experts for i in wanted):
            raise UsageError(
                f"experts are asked for by different numbers from 0 to {self._n_experts - 1}, got {wanted}"
            )
        lease = _Lease(layer)
        with self._lock:
            self._settle()
            if self._lease is not None:
                raise UsageError(f"experts of layer {self._lease.layer} are in use: give them back first")
            self._torn = True
            self._lease, self._news = lease, lease.news
            self._eviction.used(layer, ids, uses, tokens)
            table = self._table[layer]
            for i in wanted:
                entry = table[i]
                if entry is None:
                    lease.later.append(i)
                    continue
                entry.used = True
                self._locked[entry.slot] = True
                if entry.hinted:
                    entry.hinted = False
                    self._waiting_predicted -= len(entry.missing)
                    self.stats.predicted_used += 1
                    self._precision[layer] += (1.0 - self._precision[layer]) / _MEMORY
                (lease.pending if entry.missing else lease.ready).append(entry)
            self._end_expectations(layer, set(wanted))
            self.stats.hits += len(lease.ready)
            self.stats.late += len(lease.pending)
            self.stats.misses += len(lease.later)
            if lease.pending:
                self._reader.flash.promote([piece for entry in lease.pending for piece in entry.pieces])
            self._claim_for(lease)
            self._torn = False
        return lease

    def _deliver(self, lease: _Lease, cancelled: Callable[[], bool]) -> Iterator[list[Expert]]:
        """`ready` first, `pending` as they land, `later` when slots become free."""
        held = lease.ready
        while True:
            if held:
                yield [entry.expert for entry in held]
            held = self._next(lease, held)
            if not held and not lease.pending and not lease.later:
                return
            if not held:
                began = time.perf_counter()
                self._reader.flash.wait(lease.news, cancelled)
                self.stats.stall_s += time.perf_counter() - began

    def _next(self, lease: _Lease, done: Sequence[_Entry]) -> list[_Entry]:
        """`done` with some, take those that have landed meanwhile; raises what reading one of them raised."""
        with self._lock:
            self._settle()
            if self._lease is not lease:
                raise UsageError(f"these experts of layer {lease.layer} were given back")
            self._torn = True
            self._unpin(done)
            self._claim_for(lease)
            if lease.later and not lease.pending:  # all slots are taken by something else
                self._make_room()
                self._claim_for(lease)
            landed = [entry for entry in lease.pending if not entry.missing]
            if landed:
                lease.pending = [entry for entry in lease.pending if entry.missing]
                lease.ready = landed
            self._torn = False
        for entry in landed:
            if entry.error is not None:
                raise entry.error
        return landed

    def _end(self, lease: _Lease) -> None:
        """All of it is done with, whether it came or not."""
        with self._lock:
            if self._lease is lease and not self._torn:
                self._torn = True
                self._unpin([*lease.ready, *lease.pending])
                self._lease = self._news = None
                self._torn = False

    def expect(self, layer: int, ids: Sequence[int], *, only_when_idle: bool = False) -> None:
        """Begin reading these with what bandwidth is left over; they stay until the layer has been passed."""
        if only_when_idle and self._reader.flash.waiting:
            return
        with self._lock:
            self._settle()
            room = (self.slots - len(self._lent)) // 2 - sum(map(len, self._expected))  # the others must find slots too
            if self._waiting_predicted > _MOST_PREDICTED or room <= 0 or not self._trusts(layer):
                return
            self._torn = True
            table = self._table[layer]
            missing = []
            for i in dict.fromkeys(ids[:room]):
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
            self._torn = False

    def fill(self, keys: Sequence[int]) -> None:
        """Read these (layer * experts + id) into empty slots in the background, in this order."""
        with self._lock:
            self._settle()
            self._torn = True
            for key in keys:
                layer, i = divmod(int(key), self._n_experts)
                if not self._free:
                    break
                if self._table[layer][i] is None:
                    for entry in self._claim(layer, [i]):
                        self._reader.flash.submit(entry.pieces, BACKGROUND)
            self._torn = False

    @contextmanager
    def lend(self, n_bytes: int, cancelled: Callable[[], bool] = never) -> Iterator[None]:
        """Give the memory of some slots, the least wanted ones, back to the system for a while."""
        lent = self._take_slots(-(-n_bytes // self.slot_bytes), cancelled)
        try:
            for slot in lent:
                self._arena.release(slot * self.slot_bytes, self.slot_bytes)
            yield
        finally:
            give_back_free_memory()
            with self._lock:
                self._settle()
                self._torn = True
                for slot in lent:
                    if slot in self._lent:
                        self._lent.discard(slot)
                        self._free.append(slot)
                self._torn = False

    def _take_slots(self, count: int, cancelled: Callable[[], bool]) -> list[int]:
        """Empty slots to lend: as many as there are, but for two."""
        news: SimpleQueue[None] = SimpleQueue()
        while True:
            with self._lock:
                self._settle()
                self._torn = True
                self._news = news
                count = min(count, self.slots - len(self._lent) - 2)
                self._make_room()
                if len(self._free) < count:
                    self._evict(count - len(self._free))
                if len(self._free) >= count or not any(each is not None and each.missing for each in self._owners):
                    lent = self._free[len(self._free) - max(0, count) :] if count > 0 else []
                    self._lent.update(lent)
                    del self._free[len(self._free) - len(lent) :]
                    self._news = None
                    self._torn = False
                    return lent
                self._torn = False
            self._reader.flash.wait(news, cancelled)  # the others are being filled

    def resident(self) -> list[tuple[int, int]]:
        """(layer, id) of what is complete."""
        with self._lock:
            self._settle()
            return [
                (layer, i)
                for layer, table in enumerate(self._table)
                for i, entry in enumerate(table)
                if entry is not None and not entry.missing
            ]

    def check(self) -> None:
        """Assert that the bookkeeping agrees with itself, for tests: between calls, with nothing leased."""
        with self._lock:
            assert not self._torn and self._lease is None and not self._lent
            taken = [entry for entry in self._owners if entry is not None]
            assert sorted([*self._free, *(entry.slot for entry in taken)]) == list(range(self.slots))
            for entry in taken:
                assert self._owners[entry.slot] is entry and not entry.used
                assert entry.doomed or self._table[entry.layer][entry.expert.id] is entry
                assert self._locked[entry.slot] == bool(entry.missing or entry.expected or entry.doomed)
                assert entry.expected == any(each is entry for each in self._expected[entry.layer])
            assert all(self._locked[slot] for slot in self._free)
            in_table = sum(entry is not None for table in self._table for entry in table)
            assert in_table == sum(not entry.doomed for entry in taken)
            assert self._waiting_predicted == sum(len(entry.missing) for entry in taken if entry.hinted)

    # -- under the lock -----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """If somebody was interrupted while the state changed: derive it from `_owners` and `_lent`."""
        if not self._torn:
            return
        unfinished = [entry for entry in self._owners if entry is not None and entry.missing]
        pieces = [piece for entry in unfinished for piece in entry.pieces]
        self._reader.flash.cancel(pieces)
        under_way = self._reader.flash.under_way(pieces)
        for entry in unfinished:
            entry.doomed = True
            entry.missing &= under_way
        for table in self._table:
            table[:] = [None] * self._n_experts
        self._expected = [[] for _ in self._table]
        self._locked[:] = True
        self._waiting_predicted = 0
        self._lease = self._news = None
        free = []
        for slot, owner in enumerate(self._owners):
            if owner is not None:
                owner.used = owner.expected = owner.hinted = False
            if owner is not None and not owner.missing:
                table = self._table[owner.layer]
                if owner.doomed or owner.error is not None or table[owner.expert.id] is not None:
                    self._owners[slot] = owner = None
                else:
                    table[owner.expert.id] = owner
                    self._keys[slot] = owner.layer * self._n_experts + owner.expert.id
                    self._locked[slot] = False
            if owner is None and slot not in self._lent:
                free.append(slot)
        self._free = free
        self._torn = False

    def _claim_for(self, lease: _Lease) -> None:
        """Begin reading as many of `later` as there are slots; those are taken off the list."""
        if not lease.later:
            return
        entries = self._claim(lease.layer, lease.later)
        del lease.later[: len(entries)]
        for entry in entries:
            entry.used = True
        lease.pending += entries
        self._reader.flash.submit([piece for entry in entries for piece in entry.pieces], DEMAND)

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
            self._make_pieces(entry)
            self._owners[slot] = entry
            self._keys[slot] = layer * self._n_experts + i
            self._locked[slot] = True
            self._table[layer][i] = entry
            entries.append(entry)
        return entries

    def _evict(self, count: int) -> None:
        candidates = np.flatnonzero(~self._locked)
        if len(candidates) > count:
            ranks = self._eviction.ranks(self._keys[candidates])
            candidates = candidates[np.argpartition(ranks, count - 1)[:count]]
        for slot in candidates.tolist():
            entry = self._owners[slot]
            assert entry is not None  # an empty slot is locked
            self._drop(entry)
            self.stats.evictions += 1

    def _drop(self, entry: _Entry) -> None:
        if self._table[entry.layer][entry.expert.id] is entry:
            self._table[entry.layer][entry.expert.id] = None
        self._owners[entry.slot] = None
        self._locked[entry.slot] = True
        self._free.append(entry.slot)

    def _make_room(self) -> None:
        """Somebody needs slots more than those who were only expected, or are read because nothing better is known."""
        for layer in range(len(self._expected)):
            self._end_expectations(layer, set())
        for entry in self._owners:
            if entry is not None and entry.missing and not entry.used and not entry.doomed:
                self._take_back(entry)

    def _take_back(self, entry: _Entry) -> None:
        """Nobody wants it now: what has not been begun is not read, what has been is finished."""
        gone = self._reader.flash.cancel(entry.pieces)
        if gone == entry.missing == {id(piece) for piece in entry.pieces}:
            if entry.hinted:
                self._waiting_predicted -= len(gone)
            self._drop(entry)
        elif gone:
            self._reader.flash.submit([piece for piece in entry.pieces if id(piece) in gone], PREDICTED)

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
            if entry.missing:
                self._take_back(entry)
            else:
                entry.hinted = False
                self._locked[entry.slot] = entry.used

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
        def landed(piece: Piece, error: Exception | None) -> None:
            self._landed(entry, piece, error)

        expert, base = entry.expert, entry.slot * self.slot_bytes
        entry.pieces = self._reader.block_pieces(
            self._layouts[entry.layer],
            entry.layer * self._n_experts + expert.id,
            expert.id,
            self._arena.bytes[base : base + self.slot_bytes],
            (expert.gate, expert.up, expert.down),
            landed,
        )
        entry.missing = {id(piece) for piece in entry.pieces}

    def _unpin(self, entries: Sequence[_Entry]) -> None:
        """The lease is done with these, whether they came or not: others land all the same."""
        for entry in entries:
            if not entry.used:
                continue
            entry.used = False
            if entry.missing:
                continue
            if entry.error is not None:
                self._drop(entry)
            elif not entry.expected:
                self._locked[entry.slot] = False

    # -- readers ------------------------------------------------------------------------------------------------

    def _landed(self, entry: _Entry, piece: Piece, error: Exception | None) -> None:
        """A piece is in its place, or will never be."""
        with self._lock:
            entry.error = entry.error or error
            entry.missing.discard(id(piece))
            if not self._torn:  # else whoever comes next finds out
                self._torn = True
                self._count_landed(entry)
                self._torn = False
            if self._news is not None:
                self._news.put(None)

    def _count_landed(self, entry: _Entry) -> None:
        if entry.hinted:
            self._waiting_predicted -= 1
        if entry.missing:
            return
        if entry.doomed:
            self._drop(entry)
        elif entry.error is not None:  # whoever asks next tries again
            if entry.expected:
                self._expected[entry.layer].remove(entry)
                entry.expected = False
            if self._table[entry.layer][entry.expert.id] is entry:
                self._table[entry.layer][entry.expert.id] = None
            if not entry.used:
                self._drop(entry)
        elif not entry.expected and not entry.used:
            self._locked[entry.slot] = False
