"""Experts larger than memory, in slots: who is asked for, who is coming, who is expected, who is done with.

All state changes under one lock, which is never held while reading or computing. It changes between `_torn = True` and
`_torn = False`: whoever finds the mark set came after somebody who was interrupted in between (Ctrl-C, no memory, a
fork), and derives all of the state anew from which entry has which slot (`expert_slots`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np

from edgerun.device import give_back_free_memory
from edgerun.errors import UsageError
from edgerun.events import never
from edgerun.kernels.interface import I32, Expert
from edgerun.kernels.recording import ExpertPlaces
from edgerun.weights.catalog import Catalog
from edgerun.weights.eviction import Eviction
from edgerun.weights.expert_lease import Lease
from edgerun.weights.expert_slots import CacheStats, Entry, ExpertSlots
from edgerun.weights.flash import BACKGROUND, DEMAND, PREDICTED, Piece
from edgerun.weights.hint_trust import HintTrust
from edgerun.weights.tensor_reader import TensorReader

_FEW_WAITING = 8  # pieces: beyond that a far guess would only be cancelled when its layer has come
_MOST_PREDICTED = 48  # pieces that may wait at once: more would only be cancelled


class ExpertCache:
    """`slots` experts of a model, and more while `others_hold` less than `spare_bytes`. One thread asks, reader threads
    deliver."""

    def __init__(
        self, catalog: Catalog, reader: TensorReader, eviction: Eviction, slots: int, spare_bytes: int = 0
    ) -> None:
        self.stats = CacheStats()
        self._least_slots, self._spare_bytes = slots, spare_bytes
        self._reader = reader
        self._eviction = eviction
        self._n_experts = catalog.n_experts
        self._lock = threading.Lock()
        self._torn = False
        self._held = ExpertSlots(catalog, reader, eviction, slots, self.stats, self._landed, spare_bytes)
        self.slot_bytes = self._held.slot_bytes
        self._expected: list[list[Entry]] = [[] for _ in catalog.layers]
        self._waiting_predicted = 0  # pieces
        self._lease: Lease | None = None
        self._news: SimpleQueue[None] | None = None  # of whoever waits
        self._trust = HintTrust(len(catalog.layers))
        self._wanted = np.zeros(len(catalog.layers), np.int64)
        self._passed: tuple[int, list[int]] = 0, []  # the layer that launches have come to, and whom they use of it

    @property
    def slots(self) -> int:
        """That experts may have now."""
        return self._held.usable

    # -- asking -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A call of the decoder begins: what an interrupted one still held is free again."""
        with self._lock:
            if self._torn or self._lease is not None or self._held.lent:
                self._torn = True
                self._lease = None
                self._held.lent.clear()
                self._settle()
                self._torn = False

    def others_hold(self, n_bytes: int) -> None:
        """See `WeightStore.others_hold`."""
        slots = self._least_slots + max(0, self._spare_bytes - n_bytes) // self.slot_bytes
        if slots > self.slots:
            give_back_free_memory()  # of those whose memory it was
        with self._lock:
            self._settle()
            self._torn = True
            self._held.resize(slots)
            if self.slots > slots:  # some are only expected, or read because nothing better is known
                self._make_room()
                self._held.resize(slots)
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

    def _ask(self, layer: int, ids: I32, uses: I32, tokens: int) -> Lease:
        wanted = ids.tolist()
        if len(set(wanted)) != len(wanted) or not all(0 <= i < self._n_experts for i in wanted):
            raise UsageError(
                f"experts are asked for by different numbers from 0 to {self._n_experts - 1}, got {wanted}"
            )
        lease = Lease(layer)
        with self._lock:
            self._settle()
            if self._lease is not None:
                raise UsageError(f"experts of layer {self._lease.layer} are in use: give them back first")
            self._torn = True
            self._passed = 0, []
            self._lease, self._news = lease, lease.news
            self._eviction.used(layer, ids, uses, tokens)
            table = self._held.table[layer]
            for i in wanted:
                entry = table[i]
                if entry is None:
                    lease.later.append(i)
                    continue
                entry.used = True
                self._held.locked[entry.slot] = True
                self._was_wanted(entry)
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

    def passed(self, layer: int, ids: I32) -> None:
        """Launches found these (unique ids) where `places` say, and used them for one token."""
        wanted = ids.tolist()
        with self._lock:
            self._settle()
            self._torn = True
            self._eviction.used(layer, ids, np.ones(len(wanted), np.int32), 1)
            if self._expected[layer]:
                entries = [entry for i in wanted if (entry := self._held.table[layer][i]) is not None]
                for entry in entries:
                    self._was_wanted(entry)
                self._end_expectations(layer, set(wanted))
                for entry in entries:
                    self._held.locked[entry.slot] = self._held.must_stay(entry)
            self.stats.hits += len(wanted)
            self._torn = False
            self._passed = layer, wanted

    def places(self, layer: int) -> ExpertPlaces:
        """See `WeightStore.places`."""
        first = self._held.expert_at(layer, 0)
        strides = (self.slot_bytes,) * len(first.matrices)
        return ExpertPlaces(self._held.places[layer], first, strides, self._wanted[layer : layer + 1])

    def stop_for(self, wanted: Sequence[int]) -> None:
        """At which guesses launches that find experts stop in each layer (`ExpertPlaces.wanted`)."""
        self._wanted[:] = wanted

    def hints_worth(self) -> list[bool]:
        """Of each layer."""
        return self._trust.are_worth()

    def _was_wanted(self, entry: Entry) -> None:
        """Asked for, whether a hint had it read or not."""
        if entry.hinted:
            entry.hinted = False
            self._waiting_predicted -= len(entry.missing)
            self.stats.predicted_used += 1
            self._trust.was_used(entry.layer)

    def _deliver(self, lease: Lease, cancelled: Callable[[], bool]) -> Iterator[list[Expert]]:
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
                while not lease.news.empty():  # what has landed is looked for once
                    lease.news.get()
                self.stats.stall_s += time.perf_counter() - began

    def _next(self, lease: Lease, done: Sequence[Entry]) -> list[Entry]:
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

    def _end(self, lease: Lease) -> None:
        """All of it is done with, whether it came or not."""
        with self._lock:
            if self._lease is lease and not self._torn:
                self._torn = True
                self._unpin([*lease.ready, *lease.pending])
                self._lease = self._news = None
                self._torn = False

    def expect(self, layer: int, ids: Sequence[int], *, is_far: bool = False) -> None:
        """Begin reading these with what bandwidth is left over; they stay until the layer has been passed. is_far: not
        the next layer's, so that they are only begun where few reads wait."""
        if is_far and self._reader.flash.waiting > _FEW_WAITING:
            return
        with self._lock:
            self._settle()
            most = self.slots // 2  # the others must find slots too
            room = most - sum(map(len, self._expected))
            if self._waiting_predicted > _MOST_PREDICTED or room <= 0 or not self._trust.allows(layer):
                return
            self._torn = True
            table = self._held.table[layer]
            missing = []
            for i in dict.fromkeys(ids[:room]):
                entry = table[i]
                if entry is None:
                    missing.append(i)
                elif not entry.expected:
                    entry.expected = True
                    self._held.locked[entry.slot] = True
                    self._expected[layer].append(entry)
            for entry in self._held.claim(layer, missing, self._passed):
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
                if not self._held.free:
                    break
                if self._held.table[layer][i] is None:
                    for entry in self._held.claim(layer, [i]):
                        self._reader.flash.submit(entry.pieces, BACKGROUND)
            self._torn = False

    @contextmanager
    def lend(self, n_bytes: int, cancelled: Callable[[], bool] = never) -> Iterator[None]:
        """Give the memory of some slots, the least wanted ones, back to the system for a while."""
        lent = self._take_slots(-(-n_bytes // self.slot_bytes), cancelled)
        try:
            self._held.give_back_memory(lent)
            yield
        finally:
            give_back_free_memory()
            with self._lock:
                self._settle()
                self._torn = True
                self._held.take_back(lent)
                self._torn = False

    def _take_slots(self, count: int, cancelled: Callable[[], bool]) -> list[int]:
        """Empty slots to lend: as many as there are, but for two."""
        news: SimpleQueue[None] = SimpleQueue()
        while True:
            with self._lock:
                self._settle()
                self._torn = True
                self._news = news
                count = min(count, self.slots - 2)
                self._make_room()
                self._held.evict_for(count)
                if len(self._held.free) >= count or not any(each.missing for each in self._held.entries()):
                    lent = self._held.lend(count)
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
                for layer, table in enumerate(self._held.table)
                for i, entry in enumerate(table)
                if entry is not None and not entry.missing
            ]

    def check(self) -> None:
        """Assert that the bookkeeping agrees with itself, for tests: between calls, with nothing leased."""
        with self._lock:
            assert not self._torn and self._lease is None and not self._held.lent
            self._held.check()
            taken = self._held.entries()
            for entry in taken:
                assert entry.expected == any(each is entry for each in self._expected[entry.layer])
            assert self._waiting_predicted == sum(len(entry.missing) for entry in taken if entry.hinted)

    # -- under the lock -----------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """If somebody was interrupted while the state changed: derive it from who has which slot."""
        if not self._torn:
            return
        unfinished = [entry for entry in self._held.entries() if entry.missing]
        pieces = [piece for entry in unfinished for piece in entry.pieces]
        self._reader.flash.cancel(pieces)
        under_way = self._reader.flash.under_way(pieces)
        for entry in unfinished:
            entry.doomed = True
            entry.missing &= under_way
        self._held.derive()
        self._expected = [[] for _ in self._expected]
        self._waiting_predicted = 0
        self._lease = self._news = None
        self._torn = False

    def _claim_for(self, lease: Lease) -> None:
        """Begin reading as many of `later` as there are slots; those are taken off the list."""
        if not lease.later:
            return
        entries = self._held.claim(lease.layer, lease.later)
        del lease.later[: len(entries)]
        for entry in entries:
            entry.used = True
        lease.pending += entries
        self._reader.flash.submit([piece for entry in entries for piece in entry.pieces], DEMAND)

    def _make_room(self) -> None:
        """Somebody needs slots more than those who were only expected, or are read because nothing better is known."""
        for layer in range(len(self._expected)):
            self._end_expectations(layer, set())
        for entry in self._held.entries():
            if entry.missing and not entry.used and not entry.doomed:
                self._take_back(entry)

    def _take_back(self, entry: Entry) -> None:
        """Nobody wants it now: what has not been begun is not read, what has been is finished."""
        gone = self._reader.flash.cancel(entry.pieces)
        if gone == entry.missing == {id(piece) for piece in entry.pieces}:
            if entry.hinted:
                self._waiting_predicted -= len(gone)
            self._held.drop(entry)
        elif gone:
            self._reader.flash.submit([piece for piece in entry.pieces if id(piece) in gone], PREDICTED)

    def _end_expectations(self, layer: int, wanted: set[int]) -> None:
        """The layer is here: what was expected and is not wanted need not be read, or may leave."""
        expected, self._expected[layer] = self._expected[layer], []
        for entry in expected:
            entry.expected = False
            if entry.expert.id in wanted:
                continue
            if entry.hinted and wanted:
                self._trust.was_wasted(layer)
            if entry.missing:
                self._take_back(entry)
            else:
                entry.hinted = False
                self._held.locked[entry.slot] = entry.used

    def _unpin(self, entries: Sequence[Entry]) -> None:
        """The lease is done with these, whether they came or not: others land all the same."""
        for entry in entries:
            if not entry.used:
                continue
            entry.used = False
            if entry.missing:
                continue
            if entry.error is not None:
                self._held.drop(entry)
            elif not entry.expected:
                self._held.locked[entry.slot] = False

    # -- readers ------------------------------------------------------------------------------------------------

    def _landed(self, entry: Entry, piece: Piece, error: Exception | None) -> None:
        """A piece is in its place, or will never be."""
        with self._lock:
            entry.error = entry.error or error
            entry.missing.discard(id(piece))
            is_news = self._torn or self._matters(entry)
            if not self._torn:  # else whoever comes next finds out
                self._torn = True
                self._count_landed(entry)
                self._torn = False
            if self._news is not None and is_news:
                self._news.put(None)

    def _matters(self, entry: Entry) -> bool:
        """Whether who waits could go on now: waking it for each piece takes the processor from those that read."""
        lease = self._lease
        if entry.missing:
            return False
        return lease is None or lease.news is not self._news or bool(lease.later) or entry.layer == lease.layer

    def _count_landed(self, entry: Entry) -> None:
        if entry.hinted:
            self._waiting_predicted -= 1
        if entry.missing:
            return
        if entry.doomed:
            self._held.drop(entry)
        elif entry.error is not None:  # whoever asks next tries again
            if entry.expected:
                self._expected[entry.layer].remove(entry)
                entry.expected = False
            self._held.forget(entry)
            if not entry.used:
                self._held.drop(entry)
        else:
            self._held.show(entry)
            self._held.locked[entry.slot] = entry.expected or entry.used
