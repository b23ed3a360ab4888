"""Objects that are known for as long as somebody else has them."""

from __future__ import annotations

import weakref
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Members(Generic[T]):
    """Held weakly, by identity. No lock: a thread that adds a member may be anywhere when Python collects garbage, also
    in here, and a stream that ends by that waits for another thread's step, which may be asking for all members.

    Each use of the dictionary is one operation of the interpreter, which others see before or after, never within."""

    def __init__(self) -> None:
        self._keys = count()
        self._members: dict[int, weakref.ref[T]] = {}

    def add(self, member: T) -> None:
        """From now on it is one of `all`. Nothing should be added twice."""
        key, members = next(self._keys), self._members
        members[key] = weakref.ref(member, lambda _: members.pop(key, None))

    def all(self) -> list[T]:
        """Those that live, in the order in which they were added."""
        return [member for known in list(self._members.values()) if (member := known()) is not None]
