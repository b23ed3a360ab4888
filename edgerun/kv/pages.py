"""Pages: pieces of memory that hold the keys and values of 256 positions, shared by sequences that begin alike.

A page is freed when nobody refers to it, as any object: no count can be wrong after an interrupt. What a page itself
knows is who may write on in it, and how much of it was promised to others. Whoever else wants to write copies it first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Protocol
from weakref import WeakSet, ref

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kv.groups import Group
from edgerun.kv.ledger import KvLedger

_LINE = 64  # bytes: of the processor's cache


class Page:
    """`n_bytes` of memory that never moves. Hashed by identity."""

    __slots__ = ("__weakref__", "_memory", "_writer", "address", "n_bytes", "promised")

    def __init__(self, n_bytes: int, writer: PageHolder) -> None:
        self._memory: NDArray[np.uint8] = np.empty(n_bytes + _LINE, np.uint8)
        self._writer = ref(writer)
        self.n_bytes = n_bytes
        self.address = -(-int(self._memory.ctypes.data) // _LINE) * _LINE
        self.promised = 0  # positions that others may hold: nobody writes them again

    def copy_from(self, other: Page) -> None:
        """What is in another page of this size."""
        ctypes.memmove(self.address, other.address, self.n_bytes)

    def fill(self, content: NDArray[np.uint8]) -> None:
        """`content`, (n_bytes,) u8, contiguous."""
        assert content.shape == (self.n_bytes,) and content.flags.c_contiguous
        ctypes.memmove(self.address, content.ctypes.data, self.n_bytes)

    def promise(self, positions: int) -> None:
        """Before another holds the first `positions` of this page."""
        self.promised = max(self.promised, positions)

    def may_write(self, holder: PageHolder, offset: int) -> bool:
        """Whether `holder` may write position `offset` and those after it without asking who else holds the page."""
        return self._writer() is holder and offset >= self.promised

    def give_to(self, holder: PageHolder) -> None:
        """`holder` is the only one who holds it."""
        self._writer, self.promised = ref(holder), 0


class PageHolder(Protocol):
    """Who holds pages: a sequence, or what several have in common."""

    @property
    def n_bytes(self) -> int:
        """Of the pages held, those that others hold too among them."""
        ...

    def held_pages(self) -> Iterator[Page]:
        """Each once."""
        ...

    def make_room(self) -> None:
        """Let go of what nobody would miss."""
        ...

    def release(self) -> None:
        """Let go of everything."""
        ...


class PagePool:
    """All pages of one decoder. `groups`: of its layers; ledger: asked before there is a new page."""

    def __init__(self, groups: Sequence[Group], ledger: KvLedger | None = None) -> None:
        self.groups = tuple(groups)
        self.ledger = ledger or KvLedger(None)
        self._holders: WeakSet[PageHolder] = WeakSet()

    def join(self, holder: PageHolder) -> None:
        """From now on `holder` is asked to make room for others."""
        self._holders.add(holder)
        self.ledger.join(holder)

    def take(self, holder: PageHolder, groups: Sequence[int]) -> list[Page]:
        """A page for each of these groups' numbers, all or none: DoesNotFitError when the ledger has no room."""
        sizes = [self.groups[group].page_bytes for group in groups]
        return self.ledger.grant(holder, sum(sizes), lambda: [Page(size, holder) for size in sizes])

    def may_write(self, holder: PageHolder, page: Page, offset: int) -> bool:
        """Whether `holder` may write position `offset` of the page and those after it: nobody else was promised them,
        or nobody else is left."""
        if page.may_write(holder, offset):
            return True
        others = [other for other in self._holders if other is not holder]
        if any(held is page for other in others for held in other.held_pages()):
            return False
        page.give_to(holder)
        return True

    @property
    def n_bytes(self) -> int:
        """Of all pages that somebody holds, each counted once."""
        return sum(page.n_bytes for page in {page for holder in self._holders for page in holder.held_pages()})

    def check_integrity(self) -> None:
        """AssertionError unless what is held, and what the ledger counts, fit together. For tests."""
        sizes = {group.page_bytes for group in self.groups}
        held = {page for holder in list(self._holders) for page in holder.held_pages()}
        assert all(page.n_bytes in sizes for page in held), "a page of no group"
        assert all(0 <= page.promised <= KEYS_PER_PAGE for page in held), "more promised than there is"
        places = sorted((page.address, page.n_bytes) for page in held)
        apart = all(at + size <= after for (at, size), (after, _) in zip(places, places[1:], strict=False))
        assert apart, "two pages in one place"
        counted = self.ledger.held_bytes
        assert counted >= sum(page.n_bytes for page in held), "the ledger counts less than is held"
        limit = self.ledger.limit_bytes
        assert limit is None or counted <= limit, "more held than granted"
