"""Asking a running call to stop, and the lock at which calls take turns."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgerun.device.forks import call_after_fork
from edgerun.errors import Cancelled, UsageError
from edgerun.events import never

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


class FairLock:
    """A lock that threads get in the order in which they asked.

    `threading.Lock` lets a thread that releases it and asks again go first: one generation would starve the others. A
    thread must not ask while it holds the lock. A thread that Ctrl-C kept from giving it back has not got it any more:
    neither for itself, when it asks again, nor for others, who see that it has left the block. (So the block is part of
    a function that runs until it ends, not of a generator that stops within.)
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # a collection within it may end a stream, which comes here
        self._minder: int | None = None  # the thread that has the mutex and cannot wait for another's release meanwhile
        self._owner: _Turn | None = None
        self._later: deque[Callable[[], None]] = deque()
        self._closed = False
        self._waiting: deque[_Turn] = deque()
        call_after_fork(self)

    @contextmanager
    def held(self, cancelled: Callable[[], bool] = never, *, though_closed: bool = False) -> Iterator[None]:
        """Hold the lock in a `with` block. Raises Cancelled when `cancelled()` becomes true while waiting,
        UsageError when the lock was closed, unless that does not matter (`though_closed`)."""
        turn = _Turn(sys._getframe(2))  # whose block it is: this frame and contextlib's lie in between
        try:
            self._acquire(turn, cancelled)
            if self._closed and not though_closed:
                raise UsageError("the model was closed")
            try:
                yield
            finally:
                self._do_later()
                self._release(turn)
        finally:
            self._release(turn)  # once more, for a Ctrl-C within the first
            if self._later and self._owner is None:  # put off while nobody had the lock
                with self.held(though_closed=True):
                    pass

    def now_or_later(self, act: Callable[[], None], *, though_closed: bool = False) -> None:
        """Do `act` under the lock. Where this thread has it already, or is about to ask for it, when it or whoever has
        it gives it back: Python collects garbage in the middle of whatever a thread does, and a stream that nobody had
        closed ends there."""
        owner, thread = self._owner, threading.get_ident()
        if self._minder == thread or (owner is not None and owner.thread == thread and owner.is_inside()):
            self._later.append(act)
            return
        with self.held(though_closed=though_closed):
            act()

    def _do_later(self) -> None:
        while self._later:
            self._later.popleft()()

    def close(self, last_act: Callable[[], None]) -> None:
        """Wait for the lock, do `last_act` under it, and let nobody have it from then on."""
        with self.held():
            self._closed = True
            last_act()

    def after_fork(self) -> None:
        """In a fork's child only the thread that forked is left. See `device.forks`."""
        self._mutex = threading.RLock()
        self._minder = None
        self._waiting.clear()
        if self._owner is not None and self._owner.thread != threading.get_ident():
            self._owner = None

    @contextmanager
    def _minded(self) -> Iterator[None]:
        """What is done with the mutex. (Ctrl-C cannot keep that locked; only who has it may then be said wrongly, until
        the next one comes.)"""
        self._minder = threading.get_ident()
        try:
            yield
        finally:
            self._minder = None

    def _acquire(self, turn: _Turn, cancelled: Callable[[], bool]) -> None:
        with self._mutex, self._minded():
            if self._owner is None or self._owner.thread == turn.thread:
                self._owner = turn
                return
            self._waiting.append(turn)
        try:
            while not turn.gate.acquire(timeout=_POLL_S):
                if cancelled():
                    raise Cancelled("cancelled while waiting for another generation's step")
                with self._mutex, self._minded():
                    self._look_after_owner()
                    if self._owner is turn:
                        break
        finally:
            with self._mutex, self._minded():
                if turn in self._waiting:
                    self._waiting.remove(turn)

    def _release(self, turn: _Turn) -> None:
        with self._mutex, self._minded():
            if self._owner is turn:  # else waiting was given up
                self._pass_on()

    def _look_after_owner(self) -> None:
        """Whoever should have passed the lock on may have been interrupted."""
        owner = self._owner
        if (owner is None or not owner.is_inside()) and self._owner is owner:
            self._pass_on()

    def _pass_on(self) -> None:
        before = self._owner
        while self._waiting:
            turn = self._waiting[0]
            if turn.is_inside():
                self._owner = turn
                self._waiting.popleft()
                turn.gate.release()
                return
            if self._owner is not before:
                return  # what a block held until now came here when it went, and has passed the lock on
            if turn in self._waiting:
                self._waiting.remove(turn)
        self._owner = None


class _Turn:
    """A thread's one stay in a block, or its wait for it."""

    def __init__(self, block: FrameType) -> None:
        self.thread = threading.get_ident()
        self.gate = threading.Lock()
        self.gate.acquire()
        self._block: FrameType | None = block

    def is_inside(self) -> bool:
        """Whether the block's function still runs: then its frame cannot be cleared. What a frame holds that has ended
        is missed by nobody.

        Asking for the frames of all threads (`sys._current_frames`) would do as well, but up to Python 3.11.8 a garbage
        collection within that runs Python can lock up the whole process: https://github.com/python/cpython/issues/106883
        """
        if self._block is not None:
            try:
                self._block.clear()
            except RuntimeError:
                return True
            self._block = None
        return False
