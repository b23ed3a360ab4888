"""Whether another device is still there: one asks several times a second, on a connection of its own.

A process that dies closes its connections, which shows at once; what a cut cable does shows only by silence. Threads
that compute do not delay answers by much: they hold no lock while they do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgerun.cluster.channel import Channel
from edgerun.cluster.control import Ping, hear, say
from edgerun.errors import FormatError, LostPeerError

EVERY_S = 0.15
PATIENCE_S = 0.85  # from the last answer to taking a device for dead: with EVERY_S less than a second in all
_LOOK_S = 1.0
LEASE_S = 3.0  # from the last question to giving back what was lent to whoever asked


class Heartbeat:
    """A thread that asks one device, and calls `lost` with the reason once, when no answer comes."""

    def __init__(
        self, channel: Channel, name: str, lost: Callable[[str], None], patience_s: float = PATIENCE_S
    ) -> None:
        self.round_trip_s = 0.0
        self._channel = channel
        self._name = name
        self._lost = lost
        self._patience_s = patience_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more. Harmless when repeated, also from `lost`."""
        self._is_over.set()
        self._channel.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._is_over.wait(EVERY_S if number else 0):
            number += 1
            asked = time.monotonic()
            try:
                say(self._channel, Ping(number))
                answer = hear(self._channel, self._patience_s)
                if answer != Ping(number):
                    raise FormatError("it answers what was not asked")
            except (LostPeerError, FormatError) as error:
                if not self._is_over.is_set():
                    self._lost(f"{self._name} does not answer: {error}")
                return
            self.round_trip_s = time.monotonic() - asked


def answer_heartbeats(channel: Channel, may_go_on: Callable[[], bool], lease_s: float = LEASE_S) -> None:
    """Answer until nobody asks any more or, looked at about once a second, may not; then return."""
    looked = time.monotonic()
    while True:
        try:
            asked = hear(channel, lease_s)
            if time.monotonic() > looked + _LOOK_S:
                looked = time.monotonic()
                if not may_go_on():
                    return
            if not isinstance(asked, Ping):
                return
            say(channel, asked)
        except (LostPeerError, FormatError):
            return
