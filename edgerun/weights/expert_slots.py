"""Equal slots of one arena, an expert in each: who has which, which are free, which are lent, who leaves for another.

A slot holds one expert: gate, up and down in the kernels' layout, each read and readable by itself. (Slots of single
matrices would suit files where down has more bits than gate no better: all slots would be as large as the largest.)
`ExpertCache` changes all of this under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.interface import Expert, Matrix, make_expert
from edgerun.kernels.recording import NOWHERE, ON_ITS_WAY
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import block_bytes, slot_blocks
from edgerun.weights.catalog import Catalog
from edgerun.weights.eviction import Eviction
from edgerun.weights.flash import Piece
from edgerun.weights.tensor_reader import TensorReader

_EVICTED_SHARE = 256  # of all slots, those that are freed at once where one is needed: looking for them takes long


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


class Entry:
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


class ExpertSlots:
    """`count` experts of a model, and for now as many more as `spare_bytes` hold (`resize`). `landed` hears of every
    piece of theirs that is in its place, or will never be."""

    def __init__(
        self,
        catalog: Catalog,
        reader: TensorReader,
        eviction: Eviction,
        count: int,
        stats: CacheStats,
        landed: Callable[[Entry, Piece, Exception | None], None],
        spare_bytes: int = 0,
    ) -> None:
        self._reader = reader
        self._eviction = eviction
        self._stats = stats
        self._landed = landed
        self._n_experts = catalog.n_experts
        self._layouts = slot_blocks(catalog, reader.kernels)
        self.slot_bytes = block_bytes(self._layouts)
        self._count = count = max(count, min(count + spare_bytes // self.slot_bytes, catalog.n_all_experts))
        self._arena = Arena(count * self.slot_bytes)  # of small pages: of large ones no parts can be given back
        self._matrices: dict[tuple[int, int], tuple[Matrix, ...]] = {}
        # From these three all the rest follows:
        self._owners: list[Entry | None] = [None] * count  # of each slot
        self.lent: set[int] = set()  # slots
        self._away: set[int] = set()  # slots whose memory is somebody else's until `resize` takes them back
        self.table: list[list[Entry | None]] = [[None] * self._n_experts for _ in catalog.layers]
        # Read by launches while Python does not look: a slot is said last when an expert comes, and taken back first
        # when it leaves. (layers, experts): see `kernels.recording.ExpertPlaces`
        self.places = np.full((len(catalog.layers), self._n_experts), NOWHERE, np.int64)
        self.free = list(range(count - 1, -1, -1))
        self._keys = np.zeros(count, np.int64)  # of the expert in each slot
        self.locked = np.ones(count, bool)  # may not be evicted: in use, on its way, expected or empty

    @property
    def usable(self) -> int:
        """Slots that experts may have now."""
        return self._count - len(self.lent) - len(self._away)

    def entries(self) -> list[Entry]:
        """Those that have a slot, whether they are there or on their way."""
        return [entry for entry in self._owners if entry is not None]

    def claim(self, layer: int, ids: Sequence[int], passed: tuple[int, Sequence[int]] = (0, ())) -> list[Entry]:
        """Slots for the first of `ids`, as far as there are free ones or some to evict; nothing is submitted. passed: a
        layer and its experts that stay, since launches that wait use them."""
        if not ids:
            return []
        used = [entry for i in passed[1] if (entry := self.table[passed[0]][i]) is not None]
        for entry in used:
            self.locked[entry.slot] = True
        self.evict_for(len(ids))
        for entry in used:
            self.locked[entry.slot] = self.must_stay(entry)
        entries = []
        for i in ids:
            if not self.free:
                break
            slot = self.free.pop()
            entry = Entry(layer, slot, make_expert(i, self._slot_matrices(layer, slot)))
            self._make_pieces(entry)
            self._owners[slot] = entry
            self._keys[slot] = layer * self._n_experts + i
            self.locked[slot] = True
            self.table[layer][i] = entry
            self.places[layer, i] = ON_ITS_WAY
            entries.append(entry)
        return entries

    def evict_for(self, count: int) -> None:
        """Have so many free slots, as far as there are experts that may leave for it."""
        count -= len(self.free)
        if count <= 0:
            return
        count = max(count, self._count // _EVICTED_SHARE)
        candidates = np.flatnonzero(~self.locked)
        if len(candidates) > count:
            ranks = self._eviction.ranks(self._keys[candidates])
            candidates = candidates[np.argpartition(ranks, count - 1)[:count]]
        for slot in candidates.tolist():
            entry = self._owners[slot]
            assert entry is not None  # an empty slot is locked
            self.drop(entry)
            self._stats.evictions += 1

    def drop(self, entry: Entry) -> None:
        """Its slot is free."""
        self.forget(entry)
        self._owners[entry.slot] = None
        self.locked[entry.slot] = True
        self.free.append(entry.slot)

    def must_stay(self, entry: Entry) -> bool:
        """Whether its slot is locked."""
        return bool(entry.missing or entry.expected or entry.used or entry.doomed)

    def forget(self, entry: Entry) -> None:
        """Nobody finds it any more."""
        if self.table[entry.layer][entry.expert.id] is entry:
            self.places[entry.layer, entry.expert.id] = NOWHERE
            self.table[entry.layer][entry.expert.id] = None

    def show(self, entry: Entry) -> None:
        """It is complete: launches find it."""
        if self.table[entry.layer][entry.expert.id] is entry:
            self.places[entry.layer, entry.expert.id] = entry.slot

    def expert_at(self, layer: int, slot: int) -> Expert:
        """Of a layer, as it would lie there."""
        return make_expert(slot, self._slot_matrices(layer, slot))

    def lend(self, count: int) -> list[int]:
        """So many of the free slots (all, if there are fewer), for something else than experts."""
        lent = self.free[len(self.free) - max(0, count) :] if count > 0 else []
        self.lent.update(lent)
        del self.free[len(self.free) - len(lent) :]
        return lent

    def give_back_memory(self, lent: Sequence[int]) -> None:
        """The system has the memory of lent slots until they are written again."""
        for slot in lent:
            self._arena.release(slot * self.slot_bytes, self.slot_bytes)

    def take_back(self, lent: Sequence[int]) -> None:
        """Lent slots are free again, but for those that were taken back before."""
        for slot in lent:
            if slot in self.lent:
                self.lent.discard(slot)
                self.free.append(slot)

    def resize(self, count: int) -> None:
        """Have so many slots, as far as there are experts that may leave; the memory of the others is the system's."""
        missing = len(self._away) - max(0, self._count - count)
        if missing >= 0:
            for slot in sorted(self._away)[:missing]:
                self._away.discard(slot)
                self.free.append(slot)
            return
        self.evict_for(-missing)
        gone = self.free[missing:]
        self.give_back_memory(gone)
        self._away.update(gone)
        del self.free[missing:]

    def derive(self) -> None:
        """Everything anew from which entry has which slot and which are lent or away; nobody uses or expects any."""
        self.places[:] = NOWHERE
        for table in self.table:
            table[:] = [None] * self._n_experts
        self.locked[:] = True
        free = []
        for slot, owner in enumerate(self._owners):
            if owner is not None:
                owner.used = owner.expected = owner.hinted = False
            if owner is not None and not owner.missing:
                table = self.table[owner.layer]
                if owner.doomed or owner.error is not None or table[owner.expert.id] is not None:
                    self._owners[slot] = owner = None
                else:
                    table[owner.expert.id] = owner
                    self._keys[slot] = owner.layer * self._n_experts + owner.expert.id
                    self.locked[slot] = False
                    self.show(owner)
            if owner is None and slot not in self.lent and slot not in self._away:
                free.append(slot)
        self.free = free

    def check(self) -> None:
        """Assert that the bookkeeping agrees with itself, for tests: with nothing lent or in use."""
        taken = self.entries()
        assert sorted([*self.free, *self._away, *(entry.slot for entry in taken)]) == list(range(self._count))
        for entry in taken:
            assert self._owners[entry.slot] is entry and not entry.used
            assert entry.doomed or self.table[entry.layer][entry.expert.id] is entry
            assert self.locked[entry.slot] == bool(entry.missing or entry.expected or entry.doomed)
            if not entry.doomed:
                place = self.places[entry.layer, entry.expert.id]
                assert place == (ON_ITS_WAY if entry.missing else entry.slot)
        assert np.count_nonzero(self.places != NOWHERE) == sum(not entry.doomed for entry in taken)
        assert all(self.locked[slot] for slot in self.free)
        in_table = sum(entry is not None for table in self.table for entry in table)
        assert in_table == sum(not entry.doomed for entry in taken)

    def _slot_matrices(self, layer: int, slot: int) -> tuple[Matrix, ...]:
        layout = self._layouts[layer]
        known = self._matrices.get((slot, layout.number))
        if known is None:
            base, made = slot * self.slot_bytes, []
            for part in layout.parts:
                memory = self._arena.bytes[base + part.offset : base + part.offset + part.n_bytes]
                made.append(self._reader.kernels.matrix_in(memory, part.info.type, part.rows, part.cols))
            known = self._matrices[slot, layout.number] = tuple(made)
        return known

    def _make_pieces(self, entry: Entry) -> None:
        def landed(piece: Piece, error: Exception | None) -> None:
            self._landed(entry, piece, error)

        expert, base, layout = entry.expert, entry.slot * self.slot_bytes, self._layouts[entry.layer]
        entry.pieces = self._reader.block_pieces(
            layout,
            layout.block + expert.id,
            expert.id,
            self._arena.bytes[base : base + self.slot_bytes],
            expert.matrices,
            landed,
        )
        entry.missing = {id(piece) for piece in entry.pieces}
