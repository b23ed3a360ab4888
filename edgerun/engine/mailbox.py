"""From the thread that computes to the one that reads: what comes of a request, in order."""

from __future__ import annotations

from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_UNREAD = 16  # results that wait for their reader before its request is left out of steps


@dataclass(frozen=True)
class End:
    """Nothing follows. error: what the reader is told, if it did not end well."""

    error: BaseException | None


@dataclass(frozen=True)
class _Nudge:
    """Nothing to read: look whether something has changed."""


_NUDGE = _Nudge()


class Mailbox(Generic[T]):
    """One writer at a time, one reader. The queue is one written in C: an interrupt cannot leave it locked."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[T | End | _Nudge] = SimpleQueue()
        self.is_ended = False  # nothing more may be put in; the reader may not have come so far

    @property
    def is_full(self) -> bool:
        """Whether the reader should read first."""
        return self._queue.qsize() >= MOST_UNREAD

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read, now."""
        return self._queue.empty()

    def put(self, value: T) -> None:
        """One result more."""
        self._queue.put(value)

    def end(self, error: BaseException | None = None) -> None:
        """The last word; of several, the first counts."""
        if not self.is_ended:
            self.is_ended = True
            self._queue.put(End(error))

    def nudge(self) -> None:
        """Wake the reader without a result."""
        self._queue.put(_NUDGE)

    def get(self, timeout_s: float) -> T | End | None:
        """The next result, or the end; None: there is none after `timeout_s` (0: now), or the reader was nudged."""
        try:
            item = self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
        except Empty:
            return None
        return None if isinstance(item, _Nudge) else item
