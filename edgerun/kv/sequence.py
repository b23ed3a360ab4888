"""The keys and values of one sequence: for every group of layers a table of pages. And its recurrent states.

The table is what kernels read; it never moves. A page is added for all layers of a group at once. Groups with a window
let go of pages that no later position will see; then a sequence can no longer be cut to just any length (`held_from`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ContextLengthError, DoesNotFitError, UnsupportedError, UsageError
from edgerun.formats.checked_tensors import Form
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.pages import LayerPages
from edgerun.kv.groups import Group
from edgerun.kv.page import Page
from edgerun.kv.pages import Copied, PagePool
from edgerun.kv.saved import STATES, page_content, page_form, page_name, page_place, saved_pages
from edgerun.kv.sequence_states import SequenceStates
from edgerun.kv.states import StateBlock

I64 = NDArray[np.int64]


class KvSequence:
    """`length` positions are written and valid. Not thread-safe: one sequence, one user at a time.

    spare: nobody needs what is in it, so that it may be emptied when the memory is needed for another.
    """

    def __init__(self, pool: PagePool, capacity: int) -> None:
        if capacity < 1:
            raise UsageError(f"a sequence needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self.spare = False
        self._pool = pool
        self.lay_out(pool.groups)
        self._states = SequenceStates(pool.states, self, capacity) if pool.states is not None else None
        pool.join(self)

    def lay_out(self, groups: Sequence[Group]) -> None:
        """Hold nothing, and from now on pages of these groups, which are the pool's."""
        self.length = 0
        self._room = 0  # up to here positions may be written; 0: look first (_grow), for something has changed
        self._held = [_Held(number, group, self.capacity) for number, group in enumerate(groups)]
        layers = {
            layer: LayerPages(held.table, layout)
            for held in self._held
            for layer, layout in zip(held.group.layers, held.group.layouts, strict=True)
        }
        self._layers = layers

    @property
    def n_bytes(self) -> int:
        """Of the pages and state blocks held, those that others hold too among them."""
        pages = sum(len(set(held.all())) * held.group.page_bytes for held in self._held)
        return pages + (0 if self._states is None else self._states.n_bytes)

    def held_pages(self) -> Iterator[Page]:
        """Each once."""
        for held in self._held:
            yield from set(held.all())

    def held_states(self) -> Iterator[StateBlock]:
        """Each once."""
        if self._states is not None:
            yield from self._states.all()

    def pages(self, layer: int) -> LayerPages:
        """The keys and values of a layer that keeps some."""
        return self._layers[layer]

    @property
    def states(self) -> SequenceStates:
        """Of a model that has some."""
        assert self._states is not None
        return self._states

    def held(self) -> list[list[Page | None]]:
        """Of every group, the pages of positions 0 and on: lists that are replaced when they change."""
        return [held.pages for held in self._held]

    def hold(self, group: int, pages: Sequence[Page | None], length: int) -> None:
        """Hold these pages of a group, whoever else does, in place of what is held, with `length` positions written:
        a sequence of another rank is told what to hold and asks for nothing itself."""
        if len(pages) > len(self._held[group].table) or not 0 <= length <= self.capacity:
            raise UsageError(
                f"a sequence of {self.capacity} positions cannot hold {len(pages)} pages, {length} of them"
            )
        self._room = 0
        held = self._held[group]
        held.pages = list(pages)
        held.table[: len(pages)] = [0 if page is None else page.address for page in pages]
        held.table[len(pages) :] = 0
        self.length = length

    def reserve(self, tokens: int, at_once: int | None = None) -> None:
        """Make room for `tokens` more positions, of which `at_once` (all) are written before the next `reserve`.

        Raises ContextLengthError beyond the capacity, DoesNotFitError when the ledger has no room for them."""
        needed = self.length + tokens
        if needed > self.capacity:
            raise ContextLengthError(
                f"{tokens} more tokens after {self.length} do not fit a context of {self.capacity}; "
                f"use a larger context or a shorter prompt"
            )
        at_once = tokens if at_once is None else min(tokens, at_once)
        if needed > self._room:
            self._grow(needed, at_once)
        if self._states is not None and tokens:
            try:
                self._states.begin(self.length, at_once)
            except DoesNotFitError:  # what can be computed again gives way
                self._states.make_room(self._states.n_bytes, self.length)
                self._states.begin(self.length, at_once)

    def _grow(self, needed: int, at_once: int) -> None:
        """Pages for the positions from `length` to `needed`; tables are written anew. Nothing is lost when it fails."""
        self._room = 0
        try:
            plans, fresh = self._taken(needed, at_once)
        except DoesNotFitError:  # whoever shared a page has let go of it now, so that it need not be copied
            if self._states is not None:
                self._states.make_room(self._states.n_bytes, self.length)
            plans, fresh = self._taken(needed, at_once)
        for held, plan in zip(self._held, plans, strict=True):
            held.arrange(plan, fresh[: plan.missing], self._pool.copied)
            del fresh[: plan.missing]
        self._room = min([self.capacity, *(held.end for held in self._held)])

    def _taken(self, needed: int, at_once: int) -> tuple[list[_Plan], list[Page]]:
        """What each group's table shall hold, and the pages that are missing for it."""
        plans = [self._planned(held, needed, at_once) for held in self._held]
        wanted = [held.number for held, plan in zip(self._held, plans, strict=True) for _ in range(plan.missing)]
        return plans, self._pool.take(self, wanted) if wanted else []

    def _planned(self, held: _Held, needed: int, at_once: int) -> _Plan:
        """What a group's table shall hold: what is kept, what has to be copied first, how many pages are missing."""
        group, start = held.group, self.length // KEYS_PER_PAGE
        end = -(-(self.length + at_once if group.window else needed) // KEYS_PER_PAGE)
        kept: dict[int, Page] = {}
        copied: Page | None = None
        in_hand = list(held.in_hand)
        for index, page in enumerate(held.pages):
            if page is None:
                continue
            offset = max(0, self.length - index * KEYS_PER_PAGE)  # from here on it would be written
            if not group.keeps(index, self.length) or (index >= end and group.window):
                in_hand += [page] if self._pool.may_write(self, page, 0) else []
            elif offset >= KEYS_PER_PAGE or self._pool.may_write(self, page, offset):
                if index > end and index - 1 not in kept:  # beyond a gap: `_room` reaches to where pages end
                    in_hand.append(page)
                else:
                    kept[index] = page
            elif offset:
                copied = page
        wanted = sum(index not in kept for index in range(start, end))
        if group.window:  # pages in hand for all that is to come, or others might take them meanwhile
            wanted = max(wanted, group.most_pages(needed, at_once) - len(kept))
        del in_hand[wanted:]
        return _Plan(start, end, kept, copied, in_hand, wanted - len(in_hand))

    def advance(self, tokens: int) -> None:
        """`tokens` positions after `length` have been written in every layer."""
        self.length += tokens

    @property
    def is_whole(self) -> bool:
        """Whether it can go on from its end: an interrupt in the middle of a step's writing may have cost it the
        states there."""
        return self._states is None or self._states.is_held(self.length)

    @property
    def keeps_rows(self) -> bool:
        """Whether a step of a few rows can be taken back to any of them; else to its beginning (`held_from`)."""
        return self._states is None or self._states.keeps_rows

    def mark(self, position: int) -> None:
        """One may want to go on from here again: of a model with states those after so many positions are kept."""
        if self._states is not None:
            self._states.mark(position)

    def held_from(self, n: int) -> int:
        """The longest beginning of at most `n` positions from which the sequence can go on: where states are held, and
        no group has let go of positions that the next one would see."""
        if self._states is None:
            return n if self._sees_all(n) else 0
        return next(each for each in self._states.nearest(n, self.length) if self._sees_all(each))

    def _sees_all(self, n: int) -> bool:
        """Whether all that position `n` would see of those before it is held."""
        for held in self._held:
            seen = held.group.seen_pages(n)
            if any(index >= len(held.pages) or held.pages[index] is None for index in seen):
                return False
        return True

    def truncate(self, n: int) -> None:
        """Forget all but the first n positions, as far as `held_from` has them."""
        if not 0 <= n <= self.length:
            raise UsageError(f"cannot cut a sequence of {self.length} positions to {n}")
        if self.held_from(n) != n:
            raise UsageError(f"cannot cut a sequence of {self.length} positions to {n}: what came before is not held")
        self._room = 0
        self.length = n
        if self._states is not None:
            self._states.truncate(n)

    def make_room(self, n_bytes: int) -> None:
        """For others: all if it is spare, else what was kept for the case that it is cut."""
        if self.spare:
            self.release()
        elif self._states is not None:
            self._states.make_room(n_bytes, self.length)

    def remember(self, tokens: Sequence[int]) -> None:
        """Others may begin with these tokens, of which the first `length` are held, too (`recall`)."""
        self._room = 0
        states = None if self._states is None else self._states.checkpoints(self.length)
        self._pool.prefixes.remember(tokens[: self.length], [held.pages for held in self._held], states)

    def recall(self, tokens: Sequence[int]) -> int:
        """Hold what is remembered of a beginning of `tokens`, if that is longer than what is held; returns `length`."""
        length, pages, states = self._pool.prefixes.recall(tokens)
        if length > self.length and length <= self.capacity:
            self.release()
            for held, known in zip(self._held, pages, strict=True):
                held.pages = known
            if self._states is not None:
                self._states.adopt(states)
            self.length = length
        return self.length

    def release(self) -> None:
        """Forget everything and give the memory back; the sequence can be filled again."""
        self._room = 0
        self.length = 0
        for held in self._held:
            held.clear()
        if self._states is not None:
            self._states.clear()

    def copy(self, n: int) -> KvSequence:
        """A sequence of its own with the first n positions, whose pages both share until one of them writes."""
        if not 0 <= n <= self.length or self.held_from(n) != n:
            raise UsageError(f"cannot copy {n} of {self.length} positions")
        other = KvSequence(self._pool, self.capacity)
        self._room = 0
        for mine, theirs in zip(self._held, other._held, strict=True):
            shared = mine.pages[: -(-n // KEYS_PER_PAGE)]
            for index, page in enumerate(shared):
                if page is not None:
                    page.promise(min(n - index * KEYS_PER_PAGE, KEYS_PER_PAGE))
            theirs.pages = list(shared)
        if self._states is not None:
            other.states.adopt(self._states.share(n))
        other.length = n
        return other

    def saved_forms(self) -> dict[str, Form]:
        """The arrays that a file gets of what is held: of each group the last pages, back to the first that is not; the
        states of its end."""
        forms: dict[str, Form] = {}
        if self._states is not None and self.length:
            forms[STATES] = self._states.form
        for held in self._held:
            index = -(-self.length // KEYS_PER_PAGE)
            while index and held.pages[index - 1] is not None:
                index -= 1
                forms[page_name(held.number, index)] = page_form(held.group)
            if index and held.group.kept_first:
                forms[page_name(held.number, 0)] = page_form(held.group)
        return forms

    def saved(self, name: str) -> NDArray[np.uint8]:
        """One of them, not a copy; to be read before anything is written here."""
        if name == STATES:
            return self.states.content(self.length)
        number, index = page_place(name)
        page = self._held[number].pages[index]
        assert page is not None
        return page_content(page, self._held[number].group, self.length - index * KEYS_PER_PAGE)

    def make_ready(self, length: int, forms: Mapping[str, Form]) -> dict[str, NDArray[Any]]:
        """In place of what is held, room for the saved arrays of `length` positions: by name, the memory that each
        shall be copied to. No position is held before `restored` says that they have been.

        UnsupportedError where `forms` are not what such a sequence has, ContextLengthError beyond the capacity,
        DoesNotFitError: then nothing is held."""
        self.release()
        if length > self.capacity:
            raise ContextLengthError(f"{length} tokens do not fit a context of {self.capacity}; use a larger context")
        found = [saved_pages(forms, held.number, held.group, length) for held in self._held]
        states = self._states if length else None
        if len(forms) != sum(map(len, found)) + (states is not None) or (
            states is not None and forms.get(STATES) != states.form
        ):
            raise UnsupportedError("its keys and values are kept in another way")
        fresh = self._pool.take(
            self, [held.number for held, indexes in zip(self._held, found, strict=True) for _ in indexes]
        )
        places: dict[str, NDArray[Any]] = {}
        try:
            for held, indexes in zip(self._held, found, strict=True):
                some = fresh[: len(indexes)]
                held.fill(indexes, some)
                del fresh[: len(indexes)]
                places |= {
                    page_name(held.number, index): page.content for index, page in zip(indexes, some, strict=True)
                }
            if states is not None:
                places[STATES] = states.make_ready(length)
        except BaseException:
            self.release()
            raise
        return places

    def restored(self, length: int) -> None:
        """All that `make_ready` made room for has been copied there."""
        self.length = length

    def check_integrity(self) -> None:
        """AssertionError unless tables and pages fit together. For tests."""
        assert 0 <= self.length <= self.capacity
        assert self.held_from(self.length) == self.length, "positions that are seen are not held"
        if self._states is not None:
            self._states.check_integrity(self.length, self.capacity)
        for held in self._held:
            pages = held.pages
            assert len(pages) <= len(held.table)
            if self._room:
                assert self.length <= self._room <= self.capacity
                wanted = [0 if page is None else page.address for page in pages]
                assert held.table.tolist() == wanted + [0] * (len(held.table) - len(pages)), "a table is wrong"
                for index in range(self.length // KEYS_PER_PAGE, -(-self._room // KEYS_PER_PAGE)):
                    page, offset = pages[index], max(0, self.length - index * KEYS_PER_PAGE)
                    assert page is not None and page.may_write(self, offset), "room that may not be written"


@dataclass(frozen=True)
class _Plan:
    """What a group's pages become: `kept` by index, all others from `start` to `end` out of those in hand, `missing`
    of which are yet to be taken. Other pages below `start` are let go of. copied: what the page at `start` begins with,
    because others hold it."""

    start: int
    end: int
    kept: dict[int, Page]
    copied: Page | None
    in_hand: list[Page]
    missing: int


class _Held:
    """A group's pages of one sequence, by index, and the table that kernels read."""

    def __init__(self, number: int, group: Group, capacity: int) -> None:
        self.number = number
        self.group = group
        self.table: I64 = np.zeros(-(-capacity // KEYS_PER_PAGE), np.int64)
        self.pages: list[Page | None] = []
        self.in_hand: list[Page] = []  # of a group with a window: those that the next positions will lie in

    @property
    def end(self) -> int:
        """The position after the last page."""
        return len(self.pages) * KEYS_PER_PAGE

    def all(self) -> Iterator[Page]:
        """Pages in the table and in hand."""
        yield from (page for page in self.pages if page is not None)
        yield from self.in_hand

    def arrange(self, plan: _Plan, fresh: list[Page], copied: Copied | None = None) -> None:
        """Pages and table as planned. An interrupt may leave half of it: then no page is in two places, what is not
        there any more is None, and the table will be written anew (`KvSequence._room`)."""
        in_hand = [*plan.in_hand, *fresh]
        self.in_hand = []
        left = {*plan.kept, *range(plan.start, len(self.pages))}
        self.pages = [page if index in left else None for index, page in enumerate(self.pages)]
        length = max([plan.end, *(index + 1 for index in plan.kept)])
        pages: list[Page | None] = [plan.kept.get(index) for index in range(length)]
        for index in range(plan.start, plan.end):
            if index not in plan.kept:
                page = in_hand.pop()
                page.promised = 0
                if index == plan.start and plan.copied is not None:
                    if copied is not None:
                        copied(self.number, page, plan.copied)
                    page.copy_from(plan.copied)
                pages[index] = page
        self.pages = pages
        self.in_hand = in_hand
        self.table[: len(pages)] = [0 if page is None else page.address for page in pages]
        self.table[len(pages) :] = 0

    def fill(self, indexes: Sequence[int], fresh: Sequence[Page]) -> None:
        """Hold these pages at these indexes, ascending, and no others."""
        self.pages = [None] * (indexes[-1] + 1 if indexes else 0)
        for index, page in zip(indexes, fresh, strict=True):
            page.promised = 0
            self.pages[index] = page
        self.table[: len(self.pages)] = [0 if page is None else page.address for page in self.pages]

    def clear(self) -> None:
        """Hold nothing."""
        self.pages, self.in_hand = [], []
        self.table[:] = 0
