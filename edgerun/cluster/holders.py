"""Which devices have which shards already, and how fast pieces came from whom: the head's choice of where a device gets
a piece.

A device that has a shard gives its pieces to another one that needs the same, where that is as fast as having them from
the head, whose one cable (and file, and cutting) all others share.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgerun.cluster.control import Seat

HEAD = ""  # as a source, where others have fingerprints
_AS_FAST = 0.9  # of the head's rate: then another device is the better source, since the head has more to do


@dataclass
class _Rate:
    """Of pieces between two devices; each piece counts half as much as the next."""

    n_bytes: float = 0.0
    took_s: float = 0.0

    def note(self, n_bytes: int, took_s: float) -> None:
        self.n_bytes = self.n_bytes / 2 + n_bytes
        self.took_s = self.took_s / 2 + took_s

    @property
    def bytes_per_s(self) -> float:
        return self.n_bytes / max(self.took_s, 1e-9)


class Holders:
    """What the head knows of them. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seats: dict[str, dict[str, Seat]] = {}  # by shard, and by fingerprint
        self._rates: dict[tuple[str, str], _Rate] = {}  # by source and receiver

    def add(self, shards: Sequence[str], seat: Seat) -> None:
        """This device has these shards, whole."""
        with self._lock:
            for shard in shards:
                self._seats.setdefault(shard, {})[seat.fingerprint] = seat

    def remove(self, shard: str, seat: Seat) -> None:
        """It does not give what it should have."""
        with self._lock:
            self._seats.get(shard, {}).pop(seat.fingerprint, None)

    def keep(self, fingerprints: Collection[str]) -> None:
        """Only these devices are there: nobody shall wait for another one."""
        with self._lock:
            for seats in self._seats.values():
                for gone in seats.keys() - set(fingerprints):
                    del seats[gone]

    def note(self, source: str, receiver: str, n_bytes: int, took_s: float) -> None:
        """A piece came so fast, all that was to be done for it counted in. source: HEAD or a fingerprint."""
        with self._lock:
            if (source, receiver) in self._rates or source == HEAD:
                self._rates.setdefault((source, receiver), _Rate()).note(n_bytes, took_s)
            else:  # for the first one it also called that device
                self._rates[source, receiver] = _Rate()

    def source_for(self, shard: str, receiver: str) -> Seat | None:
        """Whom a device should have the next piece of a shard from; None for the head. Whoever was not measured yet is
        tried with a piece or two, others first."""
        with self._lock:
            seats = [seat for key, seat in self._seats.get(shard, {}).items() if key != receiver]
            rates = {seat.fingerprint: self._rates.get((seat.fingerprint, receiver)) for seat in seats}
            head = self._rates.get((HEAD, receiver))
        best: tuple[float, Seat | None] = (0.0 if head is None else _AS_FAST * head.bytes_per_s, None)
        for seat in seats:
            rate = rates[seat.fingerprint]
            if rate is None or not rate.n_bytes:
                return seat
            if head is not None and rate.bytes_per_s > best[0]:
                best = rate.bytes_per_s, seat
        return best[1]
