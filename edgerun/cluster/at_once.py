"""Work on several threads that ends soon when whoever waits for it is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Nobody wants the work any more."""


class Stop:
    """A word for threads that work: end between two pieces."""

    def __init__(self) -> None:
        self._is_set = threading.Event()

    def set(self) -> None:
        """Say it. Harmless when repeated."""
        self._is_set.set()

    def check(self) -> None:
        """Called between pieces. StoppedError once it was said."""
        if self._is_set.is_set():
            raise StoppedError


def all_at_once(acts: Sequence[Callable[[], T]], stop: Callable[[], None]) -> list[T]:
    """What they return, each called by a thread of its own. When one raises, or this thread is interrupted, `stop` is
    called, and the error raised once all have ended."""
    with ThreadPoolExecutor(max(1, len(acts))) as threads:
        try:
            asked = [threads.submit(act) for act in acts]  # an interrupt may come while the first of them is at work
            return [each.result() for each in asked]
        except BaseException:
            stop()
            raise
