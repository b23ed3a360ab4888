"""A wait for another thread that an interrupt cannot break."""

from __future__ import annotations

import threading


class Gate:
    """Opened once, by another thread. Unlike `threading.Event` and `Thread.join` it can be waited for again after an
    interrupt at any moment of a wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._is_open = False

    def open(self) -> None:
        """Let all pass."""
        self._is_open = True
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is open, at the latest after so long."""
        if not self._is_open and self._lock.acquire(timeout=timeout_s):
            self._lock.release()
        return self._is_open
