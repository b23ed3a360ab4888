"""Asking a running call to stop, and the lock at which calls take turns."""

from __future__ import annotations

import threading
import weakref
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


class _Turn:
    """A thread's wish to hold a lock. Whoever holds the only references to it holds the lock: when they are gone, so is
    the turn, whatever interrupted the code that should have released it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()


class FairLock:
    """A lock that threads get in the order in which they asked.

    `threading.Lock` lets a thread that releases it and asks again go first: one generation would starve the
    others. A thread must not ask while it holds the lock; one that does was interrupted (Ctrl-C) just before
    it could release, and goes on as the owner. Other threads get the lock then, too: it knows its owner by a weak
    reference, and those who wait look now and then whether there is an owner still.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._owner: weakref.ref[_Turn] | None = None
        self._closed = False
        self._waiting: deque[weakref.ref[_Turn]] = deque()

    @contextmanager
    def held(self, cancelled: Callable[[], bool] = never) -> Iterator[None]:
        """Hold the lock in a `with` block. Raises Cancelled when `cancelled()` becomes true while waiting,
        UsageError when the lock was closed."""
        turn = _Turn()
        try:
            self._acquire(turn, cancelled)
            if self._closed:
                raise UsageError("the model was closed")
            try:
                yield
            finally:
                self._release(turn)
        finally:
            self._release(turn)  # once more, for a Ctrl-C within the first

    def close(self, last_act: Callable[[], None]) -> None:
        """Wait for the lock, do `last_act` under it, and let nobody have it from then on."""
        with self.held():
            self._closed = True
            last_act()

    def _acquire(self, turn: _Turn, cancelled: Callable[[], bool]) -> None:
        with self._mutex:
            owner = None if self._owner is None else self._owner()
            if owner is not None and owner.thread == turn.thread:
                self._owner = weakref.ref(turn)
                return
            self._waiting.append(weakref.ref(turn))
            self._pass_on()
        while self._owner is None or self._owner() is not turn:
            if not turn.gate.acquire(timeout=_POLL_S):
                if cancelled():
                    raise Cancelled("cancelled while waiting for another generation's step")
                with self._mutex:
                    self._pass_on()

    def _release(self, turn: _Turn) -> None:
        with self._mutex:
            if self._owner is not None and self._owner() is turn:
                self._owner = None
            self._waiting = deque(each for each in self._waiting if each() is not turn)  # waiting was given up
            self._pass_on()

    def _pass_on(self) -> None:
        """Give a lock that nobody holds to who waited longest. The owner is the truth, a gate only wakes it."""
        while (self._owner is None or self._owner() is None) and self._waiting:
            first = self._waiting[0]()
            if first is not None:
                self._owner = weakref.ref(first)
                if first.gate.locked():
                    first.gate.release()
            self._waiting.popleft()
