"""After `os.fork`: the child has the parent's memory, but only the thread that forked.

Threads that worked for an object are gone there, and a lock that another thread held stays locked for ever. So objects
with threads or locks ask to be told, and make these anew. Nothing happens where there is no fork (Windows).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Whoever has threads or locks."""

    def after_fork(self) -> None:
        """In the child, before anything else runs there: replace locks, forget threads. It must not wait or raise."""
        ...


_told: list[weakref.ref[ForkAware]] = []  # oldest first; a list, since nothing tears an append in two


def call_after_fork(owner: ForkAware) -> None:
    """Have `owner.after_fork` called in every child of this process, as long as the owner lives."""
    _told.append(weakref.ref(owner, _told.remove))


def _tell() -> None:
    for known in list(_told):
        owner = known()
        if owner is not None:
            owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
