"""Asking a running call to stop, and the lock at which calls take turns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgerun.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_POLL_S = 0.05


@runtime_checkable
class CancelSignal(Protocol):
    """Anything that says whether to stop: a `CancelToken`, a `threading.Event`."""

    def is_set(self) -> bool: ...


class CancelToken:
    """Give it to a call as `cancel`; `.cancel()` from any thread stops that call, also within a prompt."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask to stop. May be called more than once."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()


def never() -> bool:
    """The answer of a call that cannot be cancelled."""
    return False


class FairLock:
    """A lock that threads get in the order in which they asked.

    `threading.Lock` lets a thread that releases it and asks again go first: one generation would starve the
    others. A thread must not ask while it holds the lock; one that does was interrupted (Ctrl-C) just before
    it could release, and goes on as the owner.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    @contextmanager
    def held(self, cancelled: Callable[[], bool] = never) -> Iterator[None]:
        """Hold the lock in a `with` block. Raises Cancelled when `cancelled()` becomes true while waiting,
        UsageError when the lock was closed."""
        try:
            self._acquire(cancelled)
            if self._closed:
                raise UsageError("the model was closed")
            yield
        finally:
            self._release()

    def close(self, last_act: Callable[[], None]) -> None:
        """Wait for the lock, do `last_act` under it, and let nobody have it from then on."""
        with self.held():
            self._closed = True
            last_act()

    def _acquire(self, cancelled: Callable[[], bool]) -> None:
        me = threading.get_ident()
        with self._mutex:
            if self._owner is None or self._owner == me:
                self._owner = me
                return
            gate = threading.Lock()
            gate.acquire()
            entry = (me, gate)
            self._waiting.append(entry)
        try:
            while not gate.acquire(timeout=_POLL_S):
                if cancelled():
                    raise Cancelled("cancelled while waiting for another generation's step")
        finally:
            with self._mutex:
                if entry in self._waiting:
                    self._waiting.remove(entry)

    def _release(self) -> None:
        with self._mutex:
            if self._owner != threading.get_ident():
                return  # waiting was given up
            if self._waiting:
                self._owner, gate = self._waiting.popleft()
                gate.release()
            else:
                self._owner = None
