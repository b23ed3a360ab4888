"""What a device does for the others: it takes in who knows the code, keeps shards, and takes part in jobs.

A connection says what it is for before anything else. Those for pairing are open to anybody, a few at a time; all
others are sealed and for members alone. A job ends with the connection that began it, or when its head has asked for no
heartbeat for `LEASE_S`: a head that crashed or was unplugged leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgerun.cluster.channel import Channel
from edgerun.cluster.collective import Collective
from edgerun.cluster.control import (
    CONTROL,
    HEARTBEAT,
    NUMBERS,
    PAIRING,
    PREAMBLE,
    VERSION,
    Answer,
    Begin,
    Device,
    Done,
    End,
    Failed,
    Fetch,
    Have,
    Held,
    Hello,
    Knock,
    Leave,
    Load,
    Look,
    Message,
    Missing,
    Offer,
    Piece,
    Seen,
    Want,
    Welcome,
    hear,
    say,
)
from edgerun.cluster.dial import format_address
from edgerun.cluster.fetching import Fetcher
from edgerun.cluster.heartbeat import answer_heartbeats
from edgerun.cluster.home import Home
from edgerun.cluster.pairing import MOST_BYTES, Code, invite_guest
from edgerun.cluster.remote import tell_all
from edgerun.cluster.roster import Member, Roster, checked_roster
from edgerun.cluster.seat import Seat, Seats, Work
from edgerun.cluster.tls import HANDSHAKE_S, secured
from edgerun.errors import EdgerunError, FormatError, LostPeerError, NetworkError, UsageError
from edgerun.events import EventSink, Notice

_MOST_CONNECTIONS = 64
_MOST_STRANGERS = 4  # who are pairing
_IDLE_S = 24 * 3600.0  # a head at work says nothing on its connection
_FIRST_WORD_S = 10.0


class Server:
    """A device that listens. `close` it."""

    def __init__(
        self, home: Home, listen: tuple[str, int], work: Work, device: Callable[[str], Device], events: EventSink
    ) -> None:
        self.code = Code()
        self._home = home
        self._work = work
        self._device = device
        self._events = events
        self._seats = Seats(home)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._seen: tuple[float, tuple[Load, ...]] = (0.0, ())  # when a head said what of its group
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._at_work = threading.Lock()  # held by whoever computes
        try:
            family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
            self._listener = socket.create_server(listen, family=family, backlog=_MOST_CONNECTIONS)
        except OSError as error:
            raise UsageError(f"cannot listen at {format_address(*listen)}: {error}") from error
        self.address = format_address(*self._listener.getsockname()[:2])
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="cluster server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more; jobs end. Harmless when repeated."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._seats.end_all("the device leaves")

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                time.sleep(0.05)  # closed, or out of descriptors for a moment
                continue
            with self._lock:
                crowded = len(self._open) >= _MOST_CONNECTIONS
                if not crowded:
                    self._open.add(connection)
            if crowded:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="cluster connection", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            kind = _read_kind(connection)
            if kind == PAIRING:
                self._pair(connection)
                return
            secure, member = secured(connection, self._home.identity, self._home.roster, server=True)
            self._serve_member(kind, secure, member)
        except (EdgerunError, OSError) as error:
            self._events(Notice(f"a connection was refused: {error}"))
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _serve_member(self, kind: bytes, secure: socket.socket, member: Member) -> None:
        with self._lock:
            self._open.add(secure)
        try:
            if kind == NUMBERS:
                self._take_numbers(secure, member)
                return
            with secure:
                if kind == CONTROL:
                    self._control(secure, member)
                else:
                    self._heartbeat(Channel(secure))
        finally:
            with self._lock:
                self._open.discard(secure)

    def _pair(self, connection: socket.socket) -> None:
        if not self._strangers.acquire(blocking=False):
            raise NetworkError("too many devices try to join at once")
        try:
            channel = Channel(connection, MOST_BYTES)
            place = connection.getpeername()[0]

            def admit(guest: Member) -> Roster:
                return self._home.admit(Member(guest.certificate, _placed(guest.address, place)))

            guest = invite_guest(channel, self.code, self._home.identity, admit, time.sleep)
            self._events(Notice(f"{guest.name} joined"))
            tell_all(self._home)
        finally:
            self._strangers.release()

    def _take_numbers(self, secure: socket.socket, member: Member) -> None:
        knock = hear(Channel(secure, 4096), _FIRST_WORD_S)
        if not isinstance(knock, Knock):
            secure.close()
            raise FormatError("a connection for numbers began with something else")
        self._seats.deliver(knock, member.fingerprint, secure)

    def _heartbeat(self, channel: Channel) -> None:
        knock = hear(channel, _FIRST_WORD_S)
        if not isinstance(knock, Knock):
            raise FormatError("a heartbeat began with something else")

        def hear_of(loads: tuple[Load, ...]) -> None:
            self._seen = time.monotonic(), loads

        answer_heartbeats(channel, lambda: self._seats.are_members(knock.job, self._home.roster), hear_of)
        self._seen = (0.0, ())
        self._seats.end(knock.job, "the head does not ask any more, or somebody was put out")

    def _control(self, secure: socket.socket, member: Member) -> None:
        channel, place = Channel(secure), secure.getpeername()[0]
        begun: list[Seat] = []
        fetcher = Fetcher(self._home, self._events)
        try:
            while True:
                request = hear(channel, _IDLE_S)
                if self._home.roster.find(member.fingerprint) is None:
                    raise NetworkError(f"{member.name} was put out")
                try:
                    answer: Answer = self._answer(request, member, place, begun, fetcher)
                except (EdgerunError, OSError) as error:
                    answer = Failed(str(error)[:400])
                say(channel, answer)
        except LostPeerError:
            return  # that is how it ends
        finally:
            fetcher.close()
            for seat in begun:
                seat.end("the head went away")

    def _answer(self, request: Message, member: Member, place: str, begun: list[Seat], fetcher: Fetcher) -> Answer:
        match request:
            case Hello(roster, address, version):
                if version != VERSION:
                    raise FormatError(f"it speaks version {version}, this device {VERSION}; update the older one")
                known = self._home.learn(
                    checked_roster(roster).with_member(Member(member.certificate, _placed(address, place)))
                )
                return Welcome(known, self._device("a job" if self._seats.busy else ""))
            case Offer():
                return Missing(self._home.shards.missing(request))
            case Piece():
                self._home.shards.keep(request)
            case Fetch():
                return fetcher.fetch(request)
            case Want(shard, number):
                return self._home.shards.piece(shard, number)
            case Have(shards):
                return Held(self._home.shards.held(shards))
            case Begin():
                begun.append(self._begin(request, member))
            case End(job):
                self._seats.end(job, "the head ended it")
            case Look():
                when, loads = self._seen
                return Seen(loads, time.monotonic() - when if loads else 0.0)
            case Leave():
                self._home.put_out(member.fingerprint)
                self._events(Notice(f"{member.name} left"))
            case _:
                raise FormatError(f"{type(request).__name__} is no request")
        return Done()

    def _begin(self, begin: Begin, member: Member) -> Seat:
        seats = begin.seats
        mine = self._home.identity.fingerprint
        if not 0 < begin.rank < len(seats) or seats[begin.rank].fingerprint != mine:
            raise FormatError("a job in which this device has no seat")
        if seats[0].fingerprint != member.fingerprint:
            raise FormatError("a job of another head")
        shard = None if begin.shard is None else self._home.shards.finish(begin.shard)
        if shard is None and begin.way != "auto":
            raise FormatError("a job in which there is nothing to do")
        seat = self._seats.take(begin)

        def work_alone(collective: Collective, shard: Path, details: bytes) -> None:
            with self._at_work:  # the job before may still be loading its shard: both at once have no room
                self._work(collective, shard, details)

        def run() -> None:
            try:
                if shard is None:
                    seat.measure()
                else:
                    seat.work(work_alone, shard)
            except (EdgerunError, OSError) as error:
                self._events(Notice(f"the job of {member.name} ended: {error}"))

        threading.Thread(target=run, name="cluster job", daemon=True).start()
        return seat


def _placed(address: str, place: str) -> str:
    """Of one that listens on all networks (":port"), the address that it was seen at."""
    return format_address(place, int(address[1:])) if address[:1] == ":" and address[1:].isdigit() else address


def _read_kind(connection: socket.socket) -> bytes:
    connection.settimeout(HANDSHAKE_S)
    said = b""
    try:
        while len(said) <= len(PREAMBLE):
            more = connection.recv(len(PREAMBLE) + 1 - len(said))
            if not more:
                raise NetworkError("it said nothing")
            said += more
    except OSError as error:
        raise NetworkError(f"it said nothing: {error}") from error
    if not said.startswith(PREAMBLE) or said[-1:] not in (PAIRING, CONTROL, NUMBERS, HEARTBEAT):
        raise FormatError("it does not speak as an edgerun of this version does")
    return said[-1:]
