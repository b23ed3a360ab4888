"""What the KV caches of one model may take together, and who of them gives way.

A plan sets one context's keys and values aside, but sessions, forks and the last call's cache each have one. Every
cache asks here before it grows; nothing has to be given back, because what is held is counted from the caches that
still live.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from edgerun.device import give_back_free_memory
from edgerun.errors import DoesNotFitError
from edgerun.units import format_size


class Holder(Protocol):
    """A cache, as far as the ledger cares. Hashed by identity."""

    held_bytes: int  # written by the ledger when it grants more, by the cache when it lets go
    spare: bool  # nobody's at the moment: it may be emptied for another

    def release(self) -> None: ...


class KvLedger:
    """`limit_bytes` for all caches that ask. Thread-safe; a spare cache is emptied by the thread that asks, which
    therefore must be the one that may use the model now."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._caches: WeakSet[Holder] = WeakSet()
        self._lock = threading.RLock()  # a collection may run finalisers that close a session

    @property
    def held_bytes(self) -> int:
        """Of all caches that live."""
        with self._lock:
            return sum(cache.held_bytes for cache in self._caches)

    def grant(self, cache: Holder, wanted_bytes: int, least_bytes: int) -> int:
        """What `cache` may hold from now on: `wanted_bytes`, or where these are not there `least_bytes`.

        Before it refuses, spare caches are emptied and those collected that nobody can reach any more.
        Raises DoesNotFitError, and `cache` keeps what it has.
        """
        with self._lock:
            self._caches.add(cache)
            for make_room in (None, self._empty_spare, gc.collect):
                if make_room is not None:
                    make_room()
                    give_back_free_memory()
                free = self.limit_bytes - self.held_bytes + cache.held_bytes
                if least_bytes <= free:
                    cache.held_bytes = wanted_bytes if wanted_bytes <= free else least_bytes
                    return cache.held_bytes
            others = sum(each is not cache and each.held_bytes > 0 for each in self._caches)
            raise DoesNotFitError(
                f"a session needs {format_size(least_bytes)} for its keys and values, but of the "
                f"{format_size(self.limit_bytes)} that all sessions of this model may take together {others} others "
                f"hold {format_size(self.held_bytes - cache.held_bytes)}; close sessions that are no longer needed, "
                "keep their texts shorter, or load the model with more memory"
            )

    def release_all(self) -> None:
        """Empty every cache: the model is closed."""
        with self._lock:
            for cache in list(self._caches):
                cache.release()

    def _empty_spare(self) -> None:
        for cache in list(self._caches):
            if cache.spare:
                cache.release()


def unlimited(cache: Holder, wanted_bytes: int, least_bytes: int) -> int:
    """`KvLedger.grant` where nobody counts."""
    cache.held_bytes = wanted_bytes
    return wanted_bytes


Grant = Callable[[Holder, int, int], int]
