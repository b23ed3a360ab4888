"""All devices that this one knows, as ranks of its groups: `assembly.Assembly` over the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

import msgspec

from edgerun.cluster.assembly import CutWithout
from edgerun.cluster.at_once import Stop, all_at_once
from edgerun.cluster.collective import Collective
from edgerun.cluster.control import Device, Load, Offer
from edgerun.cluster.head import Head, Shard
from edgerun.cluster.home import Home
from edgerun.cluster.links import Links
from edgerun.cluster.rank_times import RankTimes, split, straggler
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.shard_file import ShardSource
from edgerun.cluster.shards import checked_offer, make_offer
from edgerun.cluster.shares import FOR_MODEL, UNMEASURED_CORE, UNMEASURED_DISK, Ability
from edgerun.cluster.spares import Read, Spares
from edgerun.cluster.worth import Worth
from edgerun.errors import EdgerunError, FormatError, LostPeerError
from edgerun.events import DeviceLoad, DevicesChosen, EventSink, GroupWorked, Notice
from edgerun.paths import read_kept, write_kept

_LOOK_S = 2.0  # between looks for devices that do not take part
_REDIAL_S = 0.25  # what is sent while a cable is out is lost, and systems send it again after a second only


def ability_of(device: Device) -> Ability:
    """What a device can do, its rate in bytes of weights a second."""
    return Ability(
        device.weights_bytes_per_s or UNMEASURED_CORE * device.cores,
        int(FOR_MODEL * device.memory_bytes),
        device.disk_bytes_per_s or UNMEASURED_DISK,
    )


class Household:
    """The devices that answer. A thread looks for those that do not take part yet, or no more. `close` it.

    worth: says who of them shall take part; None: all do. Whoever shall not waits, and is asked for again when another
    one comes or is lost."""

    def __init__(
        self, home: Home, events: EventSink, *, way: str = "auto", wire: str = "f32", worth: Worth | None = None
    ) -> None:
        self._home = home
        self._events = events
        self._way = way
        self._wire = wire
        self._worth = worth
        self._head = Head(home, [], events)
        self._found: list[Remote] = []
        self._group: list[Remote] = []  # that the last one was made of, lost since or not
        self._left_out: set[str] = set()  # fingerprints
        self._waiting: set[str] = set()  # the same, of those with whom it would be slower
        self._measured: set[str] = set()  # of those to whom `_links` are
        self._links: Links | None = None
        self._chosen: tuple[Remote, ...] = ()  # who shall take part, as it was said last
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._spares: Spares | None = None
        self._look()
        self._looker = threading.Thread(target=self._look_again, name="household", daemon=True)
        self._looker.start()

    def abilities(self) -> list[Ability]:
        """See `Assembly`. Devices that came meanwhile take part from here on."""
        with self._lock:
            found, self._found = self._found, []
            self._head.add(found)
        if self._worth is not None and self._chosen != self._head.remotes:
            self._choose(self._worth)
        return [ability_of(remote.device) for remote in self._head.remotes]

    def names(self) -> list[str]:
        return [remote.name for remote in self._head.remotes]

    def regain(self, wait_s: float) -> None:
        """See `Assembly`. It ends earlier where nobody is to be waited for: the system of a device whose process died
        says at once that nobody listens there."""
        end, there = monotonic() + wait_s, {remote.member.fingerprint for remote in self._head.remotes}
        not_lost = there | self._left_out | self._waiting
        lost = [each for each in self._group if each.member.fingerprint not in not_lost]
        threads = [threading.Thread(target=self._redial, args=(each, end), name="redial", daemon=True) for each in lost]
        for thread in threads:
            thread.start()
        for thread in threads:  # who answers too late takes part from the next prompt on
            thread.join(max(0.0, end - monotonic()))

    def has_news(self) -> bool:
        with self._lock:
            return bool(self._found)

    def begin(self, shards: Sequence[ShardSource], details: bytes) -> Collective:
        stop = Stop()

        def offer(source: ShardSource) -> Shard:
            def read(at: int, count: int) -> bytes:
                stop.check()
                return source.read(at, count)

            return Shard(self._offer(source, read), source.read)

        offered = all_at_once([partial(offer, source) for source in shards], stop.set)
        self._group = list(self._head.remotes)
        return self._head.begin(offered, self._way, self._wire, details)

    def prepare(self, cut: CutWithout, is_busy: Callable[[], bool]) -> None:
        self._stop_spares()
        places = [Member(remote.member.certificate, remote.address) for remote in self._head.remotes]
        self._spares = Spares(self._home, places, cut, self._offer, is_busy, self._head.holders)

    def worked(self, times: Sequence[RankTimes]) -> None:
        remotes = self._head.remotes
        if len(times) != 1 + len(remotes):
            return  # somebody was lost just now
        parts = split(times)
        names = [self._home.identity.name, *self.names()]
        round_trips = [0.0, *(remote.round_trip_s for remote in remotes)]
        devices = tuple(
            DeviceLoad(name, int(did.passes), **vars(part), memory_bytes=int(did.memory_mib) << 20, round_trip_s=trip_s)
            for name, did, part, trip_s in zip(names, times, parts, round_trips, strict=True)
        )
        slowest = straggler(parts)
        for remote in remotes:
            remote.loads = tuple(Load(**vars(device)) for device in devices)
        self._events(GroupWorked(devices, "" if slowest is None else devices[slowest].name))

    def leave_out(self, place: int) -> None:
        remote = self._head.remotes[place]
        with self._lock:
            self._left_out.add(remote.member.fingerprint)
        remote.lose("it is slow")

    def end(self) -> None:
        self._stop_spares()
        self._head.end()

    def close(self) -> None:
        """Let all devices go. Harmless when repeated."""
        self._is_closed.set()
        spares, self._spares = self._spares, None
        if spares is not None:
            spares.close()
        self._looker.join()
        with self._lock:
            found, self._found = self._found, []
        self._head.add(found)
        self._head.close()

    @property
    def way(self) -> str:
        """How the group sums; "" for no group."""
        return self._head.way

    @property
    def links(self) -> Links | None:
        """What was measured of the group's links, if it was."""
        return self._head.links

    def _look_again(self) -> None:
        while not self._is_closed.wait(_LOOK_S):
            self._look()

    def _choose(self, worth: Worth) -> None:
        """Let those wait with whom the others, who are there now, would be slower."""
        remotes = self._head.remotes
        there = {remote.member.fingerprint for remote in remotes}
        with self._lock:
            self._waiting.clear()
            are_measured = there <= self._measured
        if not remotes:
            return
        if self._links is None or not are_measured:
            try:
                self._links = self._head.measure()
            except LostPeerError as error:
                self._events(Notice(f"the links were not measured: {error}"))
                if self._head.remotes != remotes:
                    self._choose(worth)  # with who is left
                return  # else all take part, if they can
        verdict = worth([remote.device for remote in remotes], self._links)
        waiting = [] if verdict is None else [each for i, each in enumerate(remotes) if i not in verdict.places]
        with self._lock:
            self._measured |= there
            self._waiting = {remote.member.fingerprint for remote in waiting}
        for remote in waiting:
            remote.lose("it waits")
            remote.close()
        self._chosen = self._head.remotes
        if verdict is not None:
            names, without = (self._home.identity.name, *self.names()), tuple(remote.name for remote in waiting)
            self._events(DevicesChosen(names, without, verdict.token_s, verdict.alone_s, verdict.all_s))

    def _look(self) -> None:
        """Connect to members that are not connected; to those that wait when another one has come."""
        with self._lock:
            known = {remote.member.fingerprint for remote in (*self._found, *self._head.remotes)} | self._left_out
            known |= self._waiting
        for member in self._home.others():
            if member.fingerprint not in known and not self._is_closed.is_set():
                self._try(member)
        with self._lock:
            is_changed = bool(self._found and self._waiting)
            if is_changed:
                self._waiting.clear()
        if is_changed:
            self._look()

    def _try(self, member: Member) -> None:
        try:
            remote = Remote(self._home, member)
        except EdgerunError:
            return  # not there now
        if remote.device.job:  # another head's, or the one that it was lost from: it is asked again when that is over
            remote.close()
            return
        with self._lock:
            self._measured.discard(member.fingerprint)  # it may come by another cable
        self._take(remote)

    def _redial(self, lost: Remote, end: float) -> None:
        """Call a device that was lost, until it answers or its time is over."""
        while monotonic() < end:
            try:
                remote = Remote(self._home, lost.member, lost.address, connect_s=_REDIAL_S)
            except EdgerunError as error:
                if isinstance(error.__cause__, ConnectionRefusedError) or self._is_closed.wait(_REDIAL_S / 5):
                    return
                continue
            remote.end(self._head.job)  # it may not have heard yet that this is over
            remote.device = lost.device  # its memory, when the job was not in it: it gets the same shard
            self._take(remote)
            return

    def _take(self, remote: Remote) -> None:
        """A connection to a device for the next group, unless there is one."""
        with self._lock:
            known = {each.member.fingerprint for each in (*self._found, *self._head.remotes)}
            is_wanted = remote.member.fingerprint not in known and not remote.why_lost and not self._is_closed.is_set()
            if is_wanted:
                self._found.append(remote)
        if is_wanted:
            self._events(Notice(f"{remote.name} is there"))
        else:
            remote.close()

    def _stop_spares(self) -> None:
        if self._spares is not None:
            self._spares.stop()

    def _offer(self, source: ShardSource, read: Read) -> Offer:
        """Of a shard; hashed once: its digest is another one as soon as somebody writes to the model's file."""
        path = self._home.offers / source.digest
        try:
            offer = checked_offer(msgspec.msgpack.decode(read_kept(path), type=Offer))
        except (OSError, msgspec.DecodeError, FormatError):
            offer = make_offer(source.n_bytes, read)
            write_kept(path, [msgspec.msgpack.encode(offer)])
        return offer
