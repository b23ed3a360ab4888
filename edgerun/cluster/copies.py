"""The head's copies of the keys and values of all ranks, so that a loss does not cost what a text's beginning took.

A loss makes new shares, and each rank needs the keys and values of other heads than it had. So copies are kept in a
form that knows no shares: blocks of `kernels.attention_layout.KEYS` positions with all heads (`kv.blocks`), as bytes as
they lie in pages. All are at the head, without which the run is over anyway: so whoever else is lost, several at once
or one while the others are given what they need, has nothing that is missing then. Copies belong to the head's pages,
and so do right whichever sequences hold these, and go when nobody does any more.

Only whole blocks are copied. What came after them is computed again from its tokens, as is everything of which there is
no copy: where the head has no memory for it, or had no time yet. Of models with recurrent states these are copied, too,
where a sequence has as many positions as whole blocks have (`state_parts.py`); without them one cannot go on. They
belong to a sequence, which may let go of the states themselves, and to these, with which others may have begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import numpy as np

from edgerun.cluster.mirror import MOST_BLOCKS_BYTES
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kv import Group, KvSequence, Page
from edgerun.kv.blocks import BLOCKS, U8, block_bytes
from edgerun.kv.states import StateBlock
from edgerun.models.places import Pass, Run

_STATES = 2  # of a sequence, of which there are copies: an answer may be taken back to before the last


@dataclass(frozen=True)
class Place:
    """A block: of a page of a group, by its number there."""

    group: int
    page: Page
    number: int


@dataclass(frozen=True)
class Kept:
    """The longest beginning of a sequence of which there are copies of all that the next position sees. blocks: of each
    group, those of the pages by their index; states: a block of the model's after them, if it has recurrent states."""

    sequence: KvSequence
    length: int
    blocks: Sequence[dict[int, list[U8]]]
    states: U8 | None = None


class Copies:
    """`groups`: of the whole model's layers. limit_bytes: of copies and of what the head's own pages take, together;
    None: nobody counts. state_bytes: of a block of the whole model's recurrent states; 0: it has none. For one thread
    at a time."""

    def __init__(self, groups: Sequence[Group], limit_bytes: int | None, state_bytes: int = 0) -> None:
        self.groups = tuple(groups)
        self.state_bytes = state_bytes
        self._states: WeakKeyDictionary[KvSequence, dict[int, U8]] = WeakKeyDictionary()  # by the positions before
        self._of_blocks: WeakKeyDictionary[StateBlock, U8] = WeakKeyDictionary()  # the same, and those of others
        self.limit_bytes = limit_bytes
        self._sizes = [block_bytes(group) for group in groups]
        self._blocks: WeakKeyDictionary[Page, tuple[int, list[U8]]] = (
            WeakKeyDictionary()
        )  # the group, and from its first
        self._whole: WeakKeyDictionary[KvSequence, int] = WeakKeyDictionary()  # pages from the first that lack nothing

    @property
    def n_bytes(self) -> int:
        """Of all copies."""
        states = {id(each) for kept in self._states.values() for each in kept.values()}
        states |= set(map(id, self._of_blocks.values()))
        return self.state_bytes * len(states) + sum(
            self._sizes[group] * len(blocks) for group, blocks in self._blocks.values()
        )

    def writes(self, task: Pass) -> None:
        """Before a pass: there is no copy any more of what it will write, whether it succeeds or not."""
        for run in task.runs:
            if self.state_bytes:
                self._write_states(run)
            first, end = run.start // KEYS_PER_PAGE, -(-(run.start + run.rows) // KEYS_PER_PAGE)
            self._whole[run.sequence] = min(self._whole.get(run.sequence, 0), first)
            for pages in run.sequence.held():
                for index, page in enumerate(pages[first:end], first):
                    if page is not None:
                        self._cut(page, max(0, run.start - index * KEYS_PER_PAGE) // KEYS)

    def _write_states(self, run: Run) -> None:
        for position in [each for each in self._states.get(run.sequence, ()) if each > run.start]:
            del self._states[run.sequence][position]
        for position, block in run.sequence.states.of_step(run.start, run.rows).items():
            if position > run.start:
                self._of_blocks.pop(block, None)

    def forget(self, page: Page) -> None:
        """Something else is in the page now."""
        self._cut(page, 0)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self._whole.clear()
        self._forget_states()

    def _forget_states(self) -> None:
        self._states.clear()
        self._of_blocks.clear()

    def missing(self, task: Pass, most_bytes: int) -> list[Place]:
        """Blocks that are full after a pass of which there are no copies, the earliest first: of so many bytes, or
        one."""
        found: list[Place] = []
        for run in task.runs:
            end, held = run.start + run.rows, run.sequence.held()
            for index in range(self._whole.get(run.sequence, 0), -(-end // KEYS_PER_PAGE)):
                full = min(BLOCKS, end // KEYS - index * BLOCKS)
                lacking = [
                    Place(group, page, number)
                    for group, page in enumerate(pages[index] if index < len(pages) else None for pages in held)
                    if page is not None
                    for number in range(self._count(page), full)
                ]
                if full == BLOCKS and not lacking and index == self._whole.get(run.sequence, 0):
                    self._whole[run.sequence] = index + 1
                for place in lacking:
                    most_bytes -= self._sizes[place.group]
                    if most_bytes < 0 and found:
                        return found
                    found.append(place)
        return found

    def lacking_states(self, run: Run) -> int:
        """After how many positions, of those that a run computed, states should be copied now: the last ones that are
        held, if there are copies of all that the next position would see and there is room; 0: none."""
        held = run.sequence.states.of_step(run.start, run.rows)
        known = max(self._copied_states(run.sequence), default=0)
        for position in sorted(held, reverse=True):
            if known < position <= run.start + run.rows and position % KEYS == 0:
                return position if self._seen(run.sequence, position) is not None else 0
        return 0

    def has_room(self, n_bytes: int, held_bytes: int) -> bool:
        """Whether so much more may be copied where the head's pages take `held_bytes`."""
        return self.limit_bytes is None or self.n_bytes + n_bytes + held_bytes <= self.limit_bytes

    def add_states(self, sequence: KvSequence, position: int, block: U8) -> None:
        """The copy of the states after so many positions of a sequence, which it holds: the last of them are kept, and
        those of what is held."""
        self._of_blocks[sequence.states.of_step(position, 0)[position]] = block
        kept = self._states.setdefault(sequence, {})
        kept[position] = block
        for each in sorted(kept)[:-_STATES]:
            del kept[each]

    def add(self, place: Place, block: U8) -> None:
        """The copy of the next block of a page."""
        _, blocks = self._blocks.setdefault(place.page, (place.group, []))
        assert len(blocks) == place.number and block.size == self._sizes[place.group]
        blocks.append(block)

    def restore(self, page: Page, group: int, blocks: Sequence[U8]) -> None:
        """These are in a page now, from the first on."""
        self._blocks[page] = group, list(blocks)

    def empty_block(self, group: int) -> U8:
        """To be filled, and added."""
        return np.empty(self._sizes[group], np.uint8)

    def fitting(self, places: Sequence[Place], held_bytes: int) -> Sequence[Place]:
        """The first of these, as far as copies of them have room where the head's pages take so much."""
        sizes = [self._sizes[place.group] for place in places]
        if max(sizes) > MOST_BLOCKS_BYTES:  # one does not go at once
            return ()
        if self.limit_bytes is None:
            return places
        room = self.limit_bytes - held_bytes - self.n_bytes
        return [place for place, end in zip(places, accumulate(sizes), strict=True) if end <= room]

    def make_room(self, held_bytes: int) -> None:
        """The head's pages will take so much: the newest copies give way, without which the others are of use."""
        if self.limit_bytes is None:
            return
        excess = self.n_bytes + held_bytes - self.limit_bytes
        for page in reversed(list(self._blocks)):
            if excess <= 0:
                return
            group, blocks = self._blocks[page]
            while blocks and excess > 0:
                blocks.pop()
                excess -= self._sizes[group]
            self._whole.update(dict.fromkeys(self._whole, 0))
        if excess > 0:
            self._forget_states()

    def kept(self) -> list[Kept]:
        """Of all sequences that somebody may go on with."""
        found = []
        for sequence in list(self._whole):
            if not sequence.spare:
                found += self._longest(sequence)
        return found

    def _longest(self, sequence: KvSequence) -> list[Kept]:
        """Of one sequence; nothing where there is no copy of use."""
        if self.state_bytes:
            states = self._copied_states(sequence)
            lengths = sorted((each for each in states if each <= sequence.length), reverse=True)
        else:
            states, lengths = {}, list(range(sequence.length // KEYS * KEYS, 0, -KEYS))
        for length in lengths:
            found = self._seen(sequence, length)
            if found is not None:
                return [Kept(sequence, length, found, states.get(length))]
        return []

    def _copied_states(self, sequence: KvSequence) -> dict[int, U8]:
        """By the positions before: of the sequence's own, and of those that it began with."""
        held = sequence.states.checkpoints(sequence.length)
        found = {position: self._of_blocks[block] for position, block in held.items() if block in self._of_blocks}
        return found | self._states.get(sequence, {})

    def _seen(self, sequence: KvSequence, length: int) -> list[dict[int, list[U8]]] | None:
        """Copies of all that position `length` sees, of each group by the index of the page; None where some lack."""
        pairs = zip(self.groups, sequence.held(), strict=True)
        found = [self._copied(group, pages, length) for group, pages in pairs]
        seen = [blocks for blocks in found if blocks is not None]
        return seen if len(seen) == len(found) else None

    def _copied(self, group: Group, pages: Sequence[Page | None], length: int) -> dict[int, list[U8]] | None:
        """Of one group's pages, by their index, the blocks of all that position `length` sees; None where one lacks."""
        found: dict[int, list[U8]] = {}
        for index in sorted({*group.seen_pages(length), (length - 1) // KEYS_PER_PAGE}, reverse=True):
            page = pages[index] if index < len(pages) else None
            needed = min(BLOCKS, length // KEYS - index * BLOCKS)
            if page is None or self._count(page) < needed:
                return None
            found[index] = self._blocks[page][1][:needed]
        return found

    def _count(self, page: Page) -> int:
        """Blocks of the page that there are copies of."""
        known = self._blocks.get(page)
        return 0 if known is None else len(known[1])

    def _cut(self, page: Page, count: int) -> None:
        known = self._blocks.get(page)
        if known is not None:
            del known[1][count:]
