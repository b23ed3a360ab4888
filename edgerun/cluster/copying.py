"""How copies of keys and values come to the head (`copies.py`), and what all ranks get of them after a loss.

Both happen in lockstep, between two passes and on the connections of sums: the head says of which blocks, then all
ranks give it their parts, or it gives each its part. So nobody writes a block while it is copied. Copying takes a small
part of the time that passes take, measured on the way: where it falls behind, as on slow links, more is computed again
after a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import msgspec
import numpy as np

from edgerun.cluster.collective import Collective
from edgerun.cluster.copies import Copies, Kept, Place
from edgerun.cluster.mirror import (
    Follower,
    Said,
    SaidBack,
    SaidBackStates,
    SaidBlock,
    SaidCopies,
    SaidWant,
    SaidWantStates,
    Teller,
    state_pieces,
)
from edgerun.cluster.state_parts import StatePart, all_states
from edgerun.errors import DoesNotFitError, LostPeerError
from edgerun.kernels.interface import F32
from edgerun.kv import Group, PagePool
from edgerun.kv.blocks import U8, Heads, part_bytes, pick_heads, put_heads, read_block, write_block
from edgerun.kv.saved import STATES, page_form, page_name
from edgerun.kv.states import StateBlock
from edgerun.models.places import Pass
from edgerun.models.share import Share, kv_heads_of
from edgerun.models.spec import ModelSpec

# Of the time of passes that copying may take: of tokens, and of prompts, of which 0.04 is enough by 1 Gb/s where a
# position takes 5 ms.
_OF_TOKENS, _OF_PROMPTS = 0.03, 0.06
_MOST_ALLOWED_S = 1.0  # that it may take at once
_ROUND_BYTES = 2 << 20  # of blocks with all heads that are copied, or given, before somebody looks at the time


def heads_of(spec: ModelSpec, share: Share, groups: Sequence[Group]) -> list[Heads]:
    """Of each group of the whole model's layers, the heads that a share has."""
    return [[kv_heads_of(spec.layers[layer], share.layers[layer].heads) for layer in group.layers] for group in groups]


@dataclass(frozen=True)
class RankPart:
    """What a rank has of what is kept: as of `heads_of` and `state_part`."""

    heads: Sequence[Heads]
    states: StatePart


class Copier:
    """On the head, of one group. parts: of each rank; pool, teller: of the head's own pages."""

    def __init__(
        self, collective: Collective, copies: Copies, parts: Sequence[RankPart], pool: PagePool, teller: Teller
    ) -> None:
        self._collective = collective
        self._copies = copies
        self._heads = [part.heads for part in parts]
        self._has_all = [
            all(len(set(some)) == layout.kv_heads for some, layout in zip(heads, group.layouts, strict=True))
            for heads, group in zip(self._heads[0], copies.groups, strict=True)
        ]  # of each group, whether the head has every head itself
        self._states = [part.states for part in parts]
        self._pool = pool
        self._teller = teller
        self._allowed_s = 0.0

    def copy(self, task: Pass, took_s: float) -> None:
        """After a pass, which took so long: what of its sequences is not copied, as far as there is time for it, and
        memory. LostPeerError."""
        share = _OF_TOKENS if task.few else _OF_PROMPTS
        self._allowed_s = min(self._allowed_s + share * took_s, _MOST_ALLOWED_S)
        while self._allowed_s > 0:
            places = self._copies.missing(task, _ROUND_BYTES)
            some = self._copies.fitting(places, self._pool.ledger.held_bytes) if places else places
            if not some:
                break
            began = perf_counter()
            self._fetch(some)
            self._allowed_s -= perf_counter() - began
        if self._copies.state_bytes:
            self._copy_states(task)

    def _copy_states(self, task: Pass) -> None:
        """After a pass: of each of its sequences the last states that it may be copied from, as `copy`."""
        copies = self._copies
        for run in task.runs:
            has_room = copies.has_room(copies.state_bytes, self._pool.ledger.held_bytes)
            position = copies.lacking_states(run) if self._allowed_s > 0 and has_room else 0
            if not position:
                continue
            began = perf_counter()
            block = run.sequence.states.of_step(run.start, run.rows)[position]
            copies.add_states(run.sequence, position, self._fetched_states(block))
            self._allowed_s -= perf_counter() - began

    def _fetched_states(self, held: StateBlock) -> U8:
        """All ranks' parts of a block, as one of the model."""
        pieces = max(1, -(-self._copies.state_bytes // _ROUND_BYTES))
        self._say(SaidWantStates(self._teller.number_of(held), pieces))
        parts = [np.empty(part.n_bytes, np.uint8) for part in self._states]
        slices = [state_pieces(part.size, pieces) for part in parts]
        for index in range(pieces):
            told = self._collective.gather(held.content[slices[0][index]].view(np.float32))
            for rank, each in enumerate(told):
                mine = parts[rank][slices[rank][index]]
                if mine.size != each.nbytes:
                    raise LostPeerError(f"rank {rank} gave other states than it has")
                mine[...] = each.view(np.uint8)
        block = np.zeros(self._copies.state_bytes, np.uint8)
        for state, part in zip(self._states, parts, strict=True):
            state.put(part, block)
        return block

    def give_back(self, kept: Sequence[Kept]) -> int:
        """After a loss: sequences hold again, on all ranks, what was kept of them; how many positions that are. What
        somebody has no memory for stays forgotten. LostPeerError: then nothing is held."""
        groups, mine = self._copies.groups, RankPart(self._heads[0], self._states[0])
        taken = [each for each in kept if _is_held(each, groups, self._pool, mine)]
        is_held = all([self._give(places, blocks) for places, blocks in self._rounds(taken)])
        is_held = all([self._give_states(each) for each in taken]) and is_held
        for each in taken:
            if not is_held:
                each.sequence.release()
                continue
            each.sequence.restored(each.length)
            for place, blocks in _pages(each):
                self._copies.restore(place.page, place.group, blocks)
            if each.states is not None:
                self._copies.add_states(each.sequence, each.length, each.states)
        return sum(each.length for each in taken) if is_held else 0

    def _fetch(self, places: Sequence[Place]) -> None:
        lacking = [place for place in places if not self._has_all[place.group]]
        if lacking:
            self._ask_for(lacking)
        for place in places:
            if self._has_all[place.group]:
                part, block = self._own_block(place), self._copies.empty_block(place.group)
                put_heads(part, block, self._copies.groups[place.group], self._heads[0][place.group])
                self._copies.add(place, block)

    def _own_block(self, place: Place) -> U8:
        return read_block(place.page, self._pool.groups[place.group], place.number)

    def _ask_for(self, places: Sequence[Place]) -> None:
        self._announce(SaidWant, places)
        copies = self._copies
        mine = [self._own_block(place) for place in places]
        parts = [part.view(np.uint8) for part in self._collective.gather(np.concatenate(mine).view(np.float32))]
        at = [0] * len(parts)
        blocks = []
        for place in places:
            group = copies.groups[place.group]
            block = copies.empty_block(place.group)
            for rank, heads in enumerate(self._heads):
                end = at[rank] + part_bytes(group, heads[place.group])
                if end > parts[rank].size:
                    raise LostPeerError(f"rank {rank} gave less than its keys and values")
                put_heads(parts[rank][at[rank] : end], block, group, heads[place.group])
                at[rank] = end
            blocks.append(block)
        if at != [part.size for part in parts]:
            raise LostPeerError("a rank gave more than its keys and values")
        for place, block in zip(places, blocks, strict=True):
            copies.add(place, block)

    def _rounds(self, taken: Sequence[Kept]) -> Iterator[tuple[list[Place], list[U8]]]:
        """All blocks that the others lack, so many at a time."""
        places: list[Place] = []
        found: list[U8] = []
        n_bytes = 0
        for page, blocks in (each for kept in taken for each in _pages(kept)):
            for number, block in enumerate(blocks):
                places.append(Place(page.group, page.page, number))
                found.append(block)
                n_bytes += block.size
                if n_bytes >= _ROUND_BYTES:
                    yield places, found
                    places, found, n_bytes = [], [], 0
        if places:
            yield places, found

    def _give(self, places: Sequence[Place], blocks: Sequence[U8]) -> bool:
        """Each rank its part of these; whether all had room for it."""
        if self._collective.size == 1:
            return True
        self._announce(SaidBack, places)
        parts: list[F32] = []
        for heads in self._heads:
            picked = [
                pick_heads(block, self._copies.groups[place.group], heads[place.group])
                for place, block in zip(places, blocks, strict=True)
            ]
            parts.append(np.concatenate(picked).view(np.float32))
        self._collective.scatter(parts, parts[0])
        told = self._collective.gather(np.ones(1, np.float32))
        return all(each.size == 1 and each[0] == 1 for each in told)

    def _give_states(self, kept: Kept) -> bool:
        """Each rank its part of what was kept of a sequence's states; whether all had room for it."""
        if kept.states is None or self._collective.size == 1:
            return True
        held = kept.sequence.states.of_step(kept.length, 0)[kept.length]
        parts = [state.pick(kept.states) for state in self._states]
        pieces = max(1, -(-kept.states.size // _ROUND_BYTES))
        self._say(SaidBackStates(self._teller.number_of(held), pieces))
        slices = [state_pieces(part.size, pieces) for part in parts]
        for index in range(pieces):
            some = [part[each[index]].view(np.float32) for part, each in zip(parts, slices, strict=True)]
            self._collective.scatter(some, some[0])
        told = self._collective.gather(np.ones(1, np.float32))
        return all(each.size == 1 and each[0] == 1 for each in told)

    def _announce(self, kind: type[SaidWant] | type[SaidBack], places: Sequence[Place]) -> None:
        self._say(kind([SaidBlock(each.group, self._teller.number_of(each.page), each.number) for each in places]))

    def _say(self, said: Said) -> None:
        self._collective.announce(msgspec.msgpack.encode(said))


def hold_alone(kept: Sequence[Kept], groups: Sequence[Group], pool: PagePool, spec: ModelSpec) -> int:
    """`Copier.give_back` of a head that has the whole model."""
    heads = [[range(each.kv_heads) for each in group.layouts] for group in groups]
    taken = [each for each in kept if _is_held(each, groups, pool, RankPart(heads, all_states(spec)))]
    for each in taken:
        each.sequence.restored(each.length)
    return sum(each.length for each in taken)


def _is_held(kept: Kept, groups: Sequence[Group], pool: PagePool, mine: RankPart) -> bool:
    """Whether the head has room for what was kept of a sequence; then its own part is in its pages and its block."""
    forms = {
        page_name(number, index): page_form(pool.groups[number])
        for number, blocks in enumerate(kept.blocks)
        for index in blocks
    }
    if kept.states is not None:
        forms[STATES] = kept.sequence.states.form
    try:
        room = kept.sequence.make_ready(kept.length, forms)
    except DoesNotFitError:
        return False
    if kept.states is not None:
        room[STATES][:] = mine.states.pick(kept.states)
    for place, blocks in _pages(kept):
        for number, block in enumerate(blocks):
            part = pick_heads(block, groups[place.group], mine.heads[place.group])
            write_block(place.page, pool.groups[place.group], number, part)
    return True


def _pages(kept: Kept) -> Iterator[tuple[Place, list[U8]]]:
    """The pages that a sequence has for what was kept of it, and their blocks."""
    for number, (pages, blocks) in enumerate(zip(kept.sequence.held(), kept.blocks, strict=True)):
        for index, some in sorted(blocks.items()):
            page = pages[index]
            assert page is not None  # make_ready
            yield Place(number, page, 0), some


def copy_as_said(said: SaidCopies, follower: Follower, collective: Collective) -> None:
    """On another rank: what the head wants goes to it, and what it gives is held. FormatError for what no head says."""
    match said:
        case SaidWant():
            collective.gather(follower.read(said.blocks).view(np.float32))
        case SaidBack():
            _take_blocks(said, follower, collective)
        case SaidWantStates():
            pieces, states = follower.state_pieces(said), follower.states(said.block)
            for each in pieces:
                collective.gather(states[each].view(np.float32))
        case SaidBackStates():
            _take_states(said, follower, collective)


def _take_states(said: SaidBackStates, follower: Follower, collective: Collective) -> None:
    """Its part of a block of states; says whether there was room."""
    pieces = follower.state_pieces(said)
    data = np.empty(pieces[-1].stop, np.uint8)
    for each in pieces:
        collective.scatter((), data[each].view(np.float32))
    _hold(collective, lambda: follower.write_states(said.block, data))


def _take_blocks(said: SaidBack, follower: Follower, collective: Collective) -> None:
    """Its part of some blocks; says whether there was room."""
    data = np.empty(follower.check_blocks(said.blocks), np.uint8)
    collective.scatter((), data.view(np.float32))
    _hold(collective, lambda: follower.write(said.blocks, data))


def _hold(collective: Collective, act: Callable[[], None]) -> None:
    """`act` holds what came; tell the head whether there was room for it."""
    try:
        act()
    except DoesNotFitError:
        collective.gather(np.zeros(1, np.float32))
    else:
        collective.gather(np.ones(1, np.float32))
