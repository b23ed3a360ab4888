"""Shards for what is likely to come: when one device is lost, those who are left have the shards that they need then.

They are cut and sent while nothing else is to be done, and slowly while something is: this works a tenth of the time
then. Where there is no room for them, or a device does not answer, they are left out, and sent when they are needed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from edgerun.cluster.assembly import CutWithout
from edgerun.cluster.control import Offer
from edgerun.cluster.holders import Holders
from edgerun.cluster.home import Home
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.shard_file import ShardSource
from edgerun.errors import EdgerunError
from edgerun.events import ignore

_TIMES_WORK = 9.0  # what it waits while the head is busy, for each second of work
_LOOK_S = 0.05

Read = Callable[[int, int], bytes]  # (offset, count) of a shard


class _Stopped(Exception):
    """What is prepared is not wanted any more."""


class Spares:
    """A thread that gives spare shards to `devices`, in the order of their ranks. `close` it before the model."""

    def __init__(
        self,
        home: Home,
        devices: Sequence[Member],
        cut: CutWithout,
        offer: Callable[[ShardSource, Read], Offer],
        is_busy: Callable[[], bool],
        holders: Holders,
    ) -> None:
        self._holders = holders
        self._home = home
        self._devices = list(devices)
        self._cut = cut
        self._offer = offer
        self._is_busy = is_busy
        self._is_stopped = threading.Event()
        self._went_on = monotonic()
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self._thread = threading.Thread(target=self._run, name="spare shards", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more: what is being cut or sent now ends soon. Harmless when repeated."""
        self._is_stopped.set()
        with self._lock:
            if self._remote is not None:
                self._remote.close()

    def close(self) -> None:
        """Stop, and wait until it has."""
        self.stop()
        self._thread.join()

    def wait(self, wait_s: float) -> bool:
        """Whether all that can be given is given, after so long at most."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(_Stopped):
            for lost in range(len(self._devices)):
                with contextlib.suppress(EdgerunError, OSError):  # a full disk, a device that went: then without
                    self._prepare(lost)

    def _prepare(self, lost: int) -> None:
        left = [device for place, device in enumerate(self._devices) if place != lost]
        for device, source in zip(left, self._cut(lost, self._pace), strict=True):
            with contextlib.suppress(EdgerunError):
                self._give(device, source)

    def _give(self, device: Member, source: ShardSource) -> None:
        def read(at: int, count: int) -> bytes:
            self._pace()
            return source.read(at, count)

        offer = msgspec.structs.replace(self._offer(source, read), spare=True)
        remote = Remote(self._home, device)
        try:
            with self._lock:
                self._remote = remote
            self._pace()
            remote.give(offer, source.read, ignore, self._holders, self._pace)
        finally:
            with self._lock:
                self._remote = None
            remote.close()

    def _pace(self) -> None:
        """Called between pieces of work."""
        worked_s = monotonic() - self._went_on
        end = monotonic() + _TIMES_WORK * worked_s
        while self._is_busy() and monotonic() < end:
            if self._is_stopped.wait(_LOOK_S):
                break
        if self._is_stopped.is_set():
            raise _Stopped
        self._went_on = monotonic()
