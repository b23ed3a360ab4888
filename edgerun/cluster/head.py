"""The device that has the text: it gives the others their shards, and makes and remakes the group.

A group is one job. When a rank is lost, the job is over for all; whoever is left can begin another, with other shards.
Devices are watched from before they are given anything until they have heard that the job is over: whoever is lost
meanwhile keeps nobody waiting.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec

from edgerun.cluster.at_once import all_at_once
from edgerun.cluster.collective import HEAD
from edgerun.cluster.control import Begin, Offer
from edgerun.cluster.control import Seat as SeatOf
from edgerun.cluster.holders import Holders
from edgerun.cluster.home import Home
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.links import Links
from edgerun.cluster.remote import Remote
from edgerun.cluster.seat import Seat
from edgerun.errors import EdgerunError, LostPeerError, NetworkError
from edgerun.events import EventSink, Notice


@dataclass(frozen=True)
class Shard:
    """What a rank needs of the model: an offer, and who reads its bytes (offset, count)."""

    offer: Offer
    read: Callable[[int, int], bytes]


class _Over(LostPeerError):
    """The job ended while a device, which is there, was being given something."""


class Head:
    """Rank 0 of one group after the other. It takes the connections over; `close` it."""

    def __init__(self, home: Home, remotes: Sequence[Remote], events: EventSink) -> None:
        self._home = home
        self._remotes = list(remotes)
        self._events = events
        self.holders = Holders()
        self._seat: Seat | None = None
        self._job = b""

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """Those that are not lost, in the order of ranks 1, 2, ... of the next group."""
        return tuple(remote for remote in self._remotes if not remote.why_lost)

    @property
    def job(self) -> bytes:
        """Of the group, or of the last one; empty before the first."""
        return self._job

    def add(self, remotes: Sequence[Remote]) -> None:
        """More devices for the next group; it takes the connections over. Those that are lost are hung up."""
        for remote in self._remotes:
            if remote.why_lost:
                remote.close()
        # Always in one order, so that the same devices get the same shards, which they have kept.
        self._remotes = sorted([*self.remotes, *remotes], key=lambda remote: (remote.name, remote.member.fingerprint))

    def begin(
        self, shards: Sequence[Shard], way: str, wire: str, details: bytes = b"", *, numbers: int = 2048
    ) -> LinkedCollective:
        """A group of this device and all that are left, each with its shard (in the order of `remotes`). Whoever has
        its shard already gets nothing, and what others have it may get from there. `way`: one of `ways`, or "auto":
        what is fastest on these links for sums of so many `numbers`. `wire`: one of `wire_format`, or "auto": exact
        numbers for tokens, for prompts what is fastest. LostPeerError when one is lost meanwhile: try again with who is
        left."""
        remotes, seat = self._new_job([shard.offer.shard for shard in shards], way, wire, details, numbers)
        self.holders.keep([seat_of.fingerprint for seat_of in seat.begin.seats])
        names = sorted({shard.offer.shard for shard in shards})

        def look(i: int) -> None:
            remotes[i].watch(seat.begin.job, seat.end)
            self.holders.add(remotes[i].held(names), remotes[i].seat)

        def give(i: int) -> None:
            remotes[i].give(shards[i].offer, shards[i].read, self._events, self.holders, lambda: _go_on(seat))

        try:
            self._each(remotes, seat, look)
            self._each(remotes, seat, give)
            self._take_seats(remotes, seat, [shard.offer.shard for shard in shards])
            return seat.connect()
        except BaseException:
            self.end()
            raise

    def measure(self) -> Links:
        """The links of this device and all that are left, before they are given anything. LostPeerError as `begin`."""
        remotes, seat = self._new_job([None] * len(self.remotes), "auto", "f32", b"", 1)
        try:
            self._each(remotes, seat, lambda i: remotes[i].watch(seat.begin.job, seat.end))
            self._take_seats(remotes, seat, [None] * len(remotes))
            return seat.measure()
        finally:
            self.end()

    @property
    def way(self) -> str:
        """How the group sums; "" for no group."""
        return "" if self._seat is None else self._seat.way

    @property
    def links(self) -> Links | None:
        """What was measured of the group's links, if it was."""
        return None if self._seat is None else self._seat.links

    def end(self) -> None:
        """The group, if there is one, is over. Harmless when repeated."""
        seat, self._seat = self._seat, None
        if seat is None:
            return
        seat.end("this device ended the job")

        def let_go(remote: Remote) -> None:
            if not remote.why_lost:
                remote.end(self._job)
            if remote.why_lost:
                remote.close()
            else:
                remote.unwatch()

        with ThreadPoolExecutor(max(1, len(self._remotes))) as threads:
            list(threads.map(let_go, self._remotes))

    def close(self) -> None:
        """End the group and hang up; whatever was lent is given back. Harmless when repeated."""
        self.end()
        for remote in self._remotes:
            remote.close()

    def _new_job(
        self, shards: Sequence[str | None], way: str, wire: str, details: bytes, numbers: int
    ) -> tuple[tuple[Remote, ...], Seat]:
        """Whom it is for, and this device's seat in it."""
        self.end()
        remotes = self.remotes
        if len(shards) != len(remotes) or not remotes:
            raise LostPeerError(f"{len(shards)} shards for {len(remotes)} devices")
        mine = SeatOf(self._home.identity.fingerprint, "")
        seats = (mine, *(remote.seat for remote in remotes))
        self._job = secrets.token_bytes(16)
        self._seat = Seat(Begin(self._job, HEAD, seats, shards[0], way, wire, numbers, details), self._home)
        return remotes, self._seat

    def _take_seats(self, remotes: Sequence[Remote], seat: Seat, shards: Sequence[str | None]) -> None:
        def take_seat(i: int) -> None:
            _go_on(seat)
            try:
                remotes[i].begin(msgspec.structs.replace(seat.begin, rank=i + 1, shard=shards[i]))
            except EdgerunError as error:  # also one that is there, and works for another head
                raise NetworkError(str(error)) from error

        self._each(remotes, seat, take_seat)

    def _each(self, remotes: Sequence[Remote], seat: Seat, act: Callable[[int], None]) -> None:
        """For all of them at once, by their places; LostPeerError when one is lost by it, or meanwhile. An interrupt of
        this thread ends the job, so that nobody waits for the rest."""

        def guarded(i: int) -> str:
            try:
                act(i)
            except _Over as over:
                return str(over)
            except NetworkError as error:
                remotes[i].lose(str(error))
                return f"{remotes[i].name}: {error}"
            return ""

        acts = [partial(guarded, i) for i in range(len(remotes))]
        lost = list(dict.fromkeys(filter(None, all_at_once(acts, lambda: seat.end("this device ended the job")))))
        if lost:
            self._events(Notice("; ".join(lost)))
            raise LostPeerError("; ".join(lost))


def _go_on(seat: Seat) -> None:
    if seat.why:
        raise _Over(seat.why)


def connect(home: Home, addresses: Sequence[tuple[str, str]], events: EventSink) -> list[Remote]:
    """Connections to devices, given as (name or fingerprint, address); those that do not answer are named in a notice.
    NotFoundError for a device that this one does not know."""
    found = []
    for name, address in addresses:
        member = home.roster.named(name)
        try:
            found.append(Remote(home, member, address))
        except EdgerunError as error:
            events(Notice(f"{member.name} takes no part: {error}"))
    return found
