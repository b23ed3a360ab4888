"""All pages and state blocks of one decoder: who holds them, who may write in them, and what their beginnings are known
by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv.groups import Group
from edgerun.kv.ledger import KvLedger
from edgerun.kv.members import Members
from edgerun.kv.page import Page, PageHolder
from edgerun.kv.prefix_tree import PrefixTree
from edgerun.kv.states import StateBlock, StateBlocks, States

_MOST_REMEMBERED_BYTES = 1 << 30  # of beginnings that sequences may have in common, and at most half of the ledger's


Copied = Callable[[int, Page, Page], None]
"""The group's number, the page that is written, the one that is read."""


class PagePool:
    """All pages of one decoder. `groups`: of its layers; ledger: asked before there is a new page or block; states: of
    those layers that have some; copied: told before a page takes over what is in another."""

    def __init__(
        self,
        groups: Sequence[Group],
        ledger: KvLedger | None = None,
        states: States | None = None,
    ) -> None:
        self.groups = tuple(groups)
        self.ledger = ledger or KvLedger(None)
        self.states = StateBlocks(states, self.ledger) if states is not None and states.layouts else None
        self.copied: Copied | None = None
        self._holders: Members[PageHolder] = Members()  # sequences are made while a step looks for pages
        most = min(self.ledger.limit_bytes // 2, _MOST_REMEMBERED_BYTES) if self.ledger.limit_bytes is not None else 0
        state_bytes = 0 if self.states is None else self.states.n_bytes
        self.prefixes = PrefixTree(
            self.groups, most, lambda: self._held_by_others(self.prefixes), state_bytes=state_bytes
        )
        self.join(self.prefixes)

    def join(self, holder: PageHolder) -> None:
        """From now on `holder` is asked to make room for others."""
        self._holders.add(holder)
        self.ledger.join(holder)

    def lay_out(self, groups: Sequence[Group], states: States) -> None:
        """Pages are of these groups, and blocks of these layers, from now on: all that was held is forgotten. Nobody
        may be using any."""
        self.groups = tuple(groups)
        if self.states is not None:
            self.states.lay_out(states)
        for holder in self._holders.all():
            holder.lay_out(self.groups)

    def take(self, holder: PageHolder, groups: Sequence[int]) -> list[Page]:
        """A page for each of these groups' numbers, all or none: DoesNotFitError when the ledger has no room."""
        sizes = [self.groups[group].page_bytes for group in groups]
        return self.ledger.grant(holder, sum(sizes), lambda: [Page(size, holder) for size in sizes])

    def may_write(self, holder: PageHolder, page: Page, offset: int) -> bool:
        """Whether `holder` may write position `offset` of the page and those after it: nobody else was promised them,
        or nobody else is left."""
        if page.may_write(holder, offset):
            return True
        if page in self._held_by_others(holder):
            return False
        page.give_to(holder)
        return True

    def _held_by_others(self, holder: PageHolder) -> set[Page | StateBlock]:
        return {each for other in self._holders.all() if other is not holder for each in _held(other)}

    @property
    def n_bytes(self) -> int:
        """Of all pages and state blocks that somebody holds, each counted once."""
        return sum(each.n_bytes for each in {each for holder in self._holders.all() for each in _held(holder)})

    def check_integrity(self) -> None:
        """AssertionError unless what is held, and what the ledger counts, fit together. For tests."""
        sizes = {group.page_bytes for group in self.groups}
        held = {page for holder in self._holders.all() for page in holder.held_pages()}
        assert all(page.n_bytes in sizes for page in held), "a page of no group"
        assert all(0 <= page.promised <= KEYS_PER_PAGE for page in held), "more promised than there is"
        blocks = {block for holder in self._holders.all() for block in holder.held_states()}
        assert not blocks or (self.states is not None and all(b.n_bytes == self.states.n_bytes for b in blocks))
        places = sorted((each.address, each.n_bytes) for each in held | blocks)
        apart = all(at + size <= after for (at, size), (after, _) in zip(places, places[1:], strict=False))
        assert apart, "two pages or blocks in one place"
        counted = self.ledger.held_bytes
        assert counted >= sum(each.n_bytes for each in held | blocks), "the ledger counts less than is held"
        limit = self.ledger.limit_bytes
        assert limit is None or counted <= limit, "more held than granted"
        self.prefixes.check_integrity()


def _held(holder: PageHolder) -> Iterator[Page | StateBlock]:
    yield from holder.held_pages()
    yield from holder.held_states()
