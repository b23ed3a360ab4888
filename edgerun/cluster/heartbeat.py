"""Whether another device is still there: one asks several times a second, on a connection of its own.

A process that dies closes its connections, which shows at once. What a cut cable does shows by silence, but so does a
device that computes with all it has: its process may answer late. The two are told apart by the device's system, which
acknowledges what was sent whether the process is slow or not, and no more when the cable is cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgerun.cluster.channel import Channel
from edgerun.cluster.control import Load, Ping, hear, say
from edgerun.errors import FormatError, LostPeerError

EVERY_S = 0.15
_SLICE_S = 0.05
PATIENCE_S = 0.8  # with a question that was not acknowledged: with EVERY_S less than a second in all
HUNG_S = 15.0  # with one that was, and is not answered
LEASE_S = 15.0  # from the last question to giving back what was lent to whoever asked
_LOOK_S = 1.0


class Heartbeat:
    """A thread that asks one device, and calls `lost` with the reason once, when no answer comes. loads: what it says
    of the group's devices when it asks."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        lost: Callable[[str], None],
        patience_s: float = PATIENCE_S,
        loads: Callable[[], tuple[Load, ...]] = tuple,
    ) -> None:
        self.round_trip_s = 0.0
        self._channel = channel
        self._name = name
        self._lost = lost
        self._patience_s = patience_s
        self._loads = loads
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
                say(self._channel, Ping(number, self._loads()))
                self._wait(asked)
                answer = hear(self._channel, self._patience_s)
                if answer != Ping(number):
                    raise FormatError("it answers what was not asked")
            except (LostPeerError, FormatError) as error:
                if not self._is_over.is_set():
                    self._lost(f"{self._name} does not answer: {error}")
                return
            self.round_trip_s = time.monotonic() - asked

    def _wait(self, asked: float) -> None:
        """Until an answer begins. LostPeerError when there will be none."""
        while not self._channel.is_readable(_SLICE_S):
            silence_s = time.monotonic() - asked
            if silence_s > HUNG_S or (silence_s > self._patience_s and not self._channel.is_acknowledged()):
                raise LostPeerError(f"silence for {silence_s:.1f} s")


def answer_heartbeats(
    channel: Channel, may_go_on: Callable[[], bool], heard: Callable[[tuple[Load, ...]], None], lease_s: float = LEASE_S
) -> None:
    """Answer until nobody asks any more or, looked at about once a second, may not; then return. `heard` is told what
    the head says of the group's devices."""
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
            say(channel, Ping(asked.number))
            heard(asked.loads)
        except (LostPeerError, FormatError):
            return
