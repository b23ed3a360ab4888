"""A thread that does what others ask it to, one thing at a time: no signal reaches it in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Done = SimpleQueue[tuple[Any, BaseException | None]]


class OwnThread:
    """Close it. What was asked goes on when the caller is interrupted: `wait` for it."""

    def __init__(self, name: str) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], Any], _Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises there."""
        done: _Done = SimpleQueue()
        self._asked.put((act, done))
        value, error = done.get()
        if error is not None:
            raise error
        found: T = value
        return found

    def wait(self) -> None:
        """Until all is done that was asked before, however often somebody interrupts."""
        done: _Done = SimpleQueue()
        self._asked.put((lambda: None, done))
        while True:
            try:
                done.get()
                return
            except KeyboardInterrupt:
                continue  # whoever waits here was interrupted before, and says so

    def close(self) -> None:
        """Harmless when repeated."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            asked = self._asked.get()
            if asked is None:
                return
            act, done = asked
            try:
                done.put((act(), None))
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                done.put((None, error))
