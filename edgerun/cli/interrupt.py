"""Ctrl-C stops the reply, not the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.api import CancelToken


@contextmanager
def cancelled_by_ctrl_c() -> Iterator[CancelToken]:
    """A token that the first Ctrl-C in the block cancels; a second one raises KeyboardInterrupt."""
    from edgerun.api import CancelToken

    token = CancelToken()

    def stop(number: int, frame: Any) -> None:
        if token.is_set():
            raise KeyboardInterrupt
        token.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield token
    finally:
        signal.signal(signal.SIGINT, before)
