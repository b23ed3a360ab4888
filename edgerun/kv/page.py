"""A page: memory for the keys and values of 256 positions, shared by sequences that begin alike.

A page is freed when nobody refers to it, as any object: no count can be wrong after an interrupt. What a page itself
knows is who may write on in it, and how much of it was promised to others. Whoever else wants to write copies it first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from edgerun.kv.states import StateBlock

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

    @property
    def content(self) -> NDArray[np.uint8]:
        """(n_bytes,) u8: the page itself, which lives as long as this array."""
        first = self.address - int(self._memory.ctypes.data)
        return self._memory[first : first + self.n_bytes]

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
    """Who holds pages, and state blocks: a sequence, or what several have in common."""

    @property
    def n_bytes(self) -> int:
        """Of the pages and state blocks held, those that others hold too among them."""
        ...

    def held_pages(self) -> Iterator[Page]:
        """Each once."""
        ...

    def held_states(self) -> Iterator[StateBlock]:
        """Each once."""
        ...

    def make_room(self, n_bytes: int) -> None:
        """Let go of what nobody would miss, until so much is free."""
        ...

    def release(self) -> None:
        """Let go of everything."""
        ...

    def lay_out(self, groups: Sequence[Any]) -> None:
        """Let go of everything, and hold pages of these groups from now on."""
        ...
