"""A device's part in a job: it waits for the connections of its rank, computes, and gives everything back.

A job has a number that nobody can guess. Whoever has a seat knocks with it on a connection of its own; the higher rank
calls the lower one, and the head, which need not listen, calls everybody.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

from edgerun.cluster.channel import Channel
from edgerun.cluster.collective import HEAD, Collective
from edgerun.cluster.control import NUMBERS, Begin, Knock, say
from edgerun.cluster.dial import dial
from edgerun.cluster.home import Home
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.links import Links, choose_wire, settle
from edgerun.cluster.peers import Peers
from edgerun.cluster.roster import Roster
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import Link
from edgerun.cluster.wire_format import EXACT, wire_format
from edgerun.errors import EdgerunError, LostPeerError, NetworkError

SETTLE_S = 15.0  # for all connections of a job
_RETRY_S = 0.1
_LOOK_S = 0.1

Work = Callable[[Collective, Path, bytes], None]  # computes a rank's share until the group ends
Arrival = tuple[int, socket.socket]  # a rank, and its connection


class Seat:
    """One rank of a job. `end` may come from any thread and at any time."""

    def __init__(self, begin: Begin, home: Home) -> None:
        self.begin = begin
        self.arrivals: SimpleQueue[Arrival] = SimpleQueue()
        self._home = home
        self._why = ""  # it ended
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self.way = ""  # that was taken
        self.links: Links | None = None  # what was measured of the links, where the way was to be chosen

    @property
    def why(self) -> str:
        """Why the job is over; "" while it is not."""
        return self._why

    def may_knock(self, knock: Knock, fingerprint: str) -> bool:
        """Whether the device of that fingerprint has the seat that it says."""
        seats = self.begin.seats
        return knock.rank < len(seats) and seats[knock.rank].fingerprint == fingerprint and not self._why

    def work(self, work: Work, shard: Path) -> None:
        """Connect and compute until the job ends. EdgerunError."""
        collective = self.connect()
        try:
            work(collective, shard, self.begin.details)
        finally:
            self.end("its work is done")

    def measure(self) -> Links:
        """Connect, measure all links, and let go. LostPeerError."""
        try:
            self.connect()
        finally:
            self.end("its links are measured")
        assert self.links is not None  # where the way is to be chosen
        return self.links

    def connect(self) -> LinkedCollective:
        """The group, once every connection of this rank is there. LostPeerError when one does not come."""
        begin, end = self.begin, time.monotonic() + SETTLE_S
        connections: dict[int, socket.socket] = {}
        is_measured = "auto" in (begin.way, begin.wire)
        partners = _partners(begin.rank, len(begin.seats), "auto" if is_measured else begin.way)
        try:
            for rank in partners:
                if _calls(begin.rank, rank):
                    connections[rank] = self._call(rank, end)
            wanted = set(partners) - set(connections)
            while wanted:
                rank, connection = self._arrival(end)
                if rank not in wanted:
                    connection.close()
                    continue
                connections[rank] = connection
                wanted.discard(rank)
        except BaseException:
            _close(connections.values())
            raise
        links = {rank: Link(connection, rank) for rank, connection in connections.items()}
        with self._lock:
            self._links = list(links.values())
        if self._why:
            self.end(self._why)
        wire = EXACT if begin.wire == "auto" else wire_format(begin.wire)
        peers = Peers(begin.rank, len(begin.seats), links, wire, lambda: self._why)
        way, hop_s = begin.way, 0.0
        if is_measured:
            settled, self.links = settle(peers, begin.numbers, begin.seats, self._home.cables)
            way, hop_s = settled if way == "auto" else way, self.links.hop_s
            if begin.wire == "auto":
                peers.wires = EXACT, choose_wire(self.links)
        self.way = way
        return LinkedCollective(peers, Way(way), hop_s)

    def end(self, why: str) -> None:
        """Whoever waits in the group stops waiting. Harmless when repeated."""
        with self._lock:
            self._why = self._why or why
            links, self._links = self._links, []
        for link in links:
            link.close()
        while True:
            try:
                self.arrivals.get_nowait()[1].close()
            except Empty:
                return

    def _call(self, rank: int, end: float) -> socket.socket:
        seat = self.begin.seats[rank]
        while True:
            try:
                connection = dial(self._home, seat.fingerprint, seat.address, NUMBERS)
                say(Channel(connection), Knock(self.begin.job, self.begin.rank))
                return connection
            except NetworkError as error:
                if self._why or time.monotonic() > end:
                    raise LostPeerError(f"rank {rank}: {self._why or error}") from error
                time.sleep(_RETRY_S)

    def _arrival(self, end: float) -> Arrival:
        while not self._why and time.monotonic() < end:
            try:
                return self.arrivals.get(timeout=_LOOK_S)
            except Empty:
                continue
        raise LostPeerError(self._why or f"not all ranks came within {SETTLE_S:.0f} s")


class Seats:
    """The jobs that a device takes part in: one at a time, and connections that came before their job."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._seats: dict[bytes, Seat] = {}

    def take(self, begin: Begin) -> Seat:
        """A seat for a job. EdgerunError while there is another."""
        with self._lock:
            self._seats = {job: seat for job, seat in self._seats.items() if not seat.why}
            if self._seats:
                raise EdgerunError("the device works for another job")
            seat = self._seats[begin.job] = Seat(begin, self._home)
            return seat

    def deliver(self, knock: Knock, fingerprint: str, connection: socket.socket) -> None:
        """Hand a connection to the job that it is for; close it when there is none that waits for it."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            with self._lock:
                seat = self._seats.get(knock.job)
            if seat is not None:
                if seat.may_knock(knock, fingerprint):
                    seat.arrivals.put((knock.rank, connection))
                    return
                break
            time.sleep(_LOOK_S / 2)  # the other one heard of the job earlier
        connection.close()

    def end(self, job: bytes, why: str) -> None:
        """End a job, if there is such a one."""
        with self._lock:
            seat = self._seats.get(job)
        if seat is not None:
            seat.end(why)

    def are_members(self, job: bytes, roster: Roster) -> bool:
        """Whether everybody who has a seat in the job is still on the roster."""
        with self._lock:
            seat = self._seats.get(job)
        return seat is None or all(roster.find(each.fingerprint) is not None for each in seat.begin.seats)

    def end_all(self, why: str) -> None:
        """End whatever is going on."""
        with self._lock:
            seats = list(self._seats.values())
        for seat in seats:
            seat.end(why)

    @property
    def busy(self) -> bool:
        """Whether a job is going on."""
        with self._lock:
            return any(not seat.why for seat in self._seats.values())


def _partners(rank: int, size: int, way: str) -> list[int]:
    """The ranks that this one has connections with: of a star's, the head alone."""
    others = [other for other in range(size) if other != rank]
    return others if way != "star" or rank == HEAD else [HEAD]


def _calls(rank: int, other: int) -> bool:
    return rank == HEAD or (other != HEAD and other < rank)


def _close(connections: Iterable[socket.socket]) -> None:
    for connection in connections:
        connection.close()
