"""Another device, as the head sees it: what can be asked of it, and whether it is still there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from edgerun.cluster.channel import Channel
from edgerun.cluster.control import (
    CONTROL,
    HEARTBEAT,
    PIECE_BYTES,
    Begin,
    Device,
    Done,
    End,
    Fetch,
    Have,
    Held,
    Hello,
    Knock,
    Leave,
    Load,
    Look,
    Missing,
    Offer,
    Piece,
    Seat,
    Seen,
    Want,
    Welcome,
    ask,
    say,
)
from edgerun.cluster.dial import CONNECT_S, dial
from edgerun.cluster.heartbeat import PATIENCE_S, Heartbeat
from edgerun.cluster.holders import HEAD, Holders
from edgerun.cluster.home import Home
from edgerun.cluster.roster import Member, checked_roster
from edgerun.cluster.shard_file import never_waits
from edgerun.errors import EdgerunError, FormatError, NetworkError
from edgerun.events import EventSink, Progress

_ANSWER_S = 10.0
_KEEP_S = 120.0  # a piece, on a slow disk; who is not there any more is noticed otherwise
_WANT_S = 2.5  # for a piece from another device, of which the head may not know yet that it is gone
_FETCH_S = _KEEP_S + 30.0  # to call that, have the piece, and keep it
_LAST_WORD_S = 5.0
_LOOK_THROUGH_S = 600.0  # a device hashes what it has of a shard


class Remote:
    """A connection to one device. One thread at a time asks; any may `close`."""

    def __init__(
        self,
        home: Home,
        member: Member,
        address: str = "",
        *,
        own_address: str = "",
        connect_s: float = CONNECT_S,
    ) -> None:
        self.member = member
        self.address = address or member.address
        self._home = home
        self._channel = Channel(dial(home, member.fingerprint, self.address, CONTROL, connect_s))
        self._heartbeat: Heartbeat | None = None
        self._why = ""
        self.loads: tuple[Load, ...] = ()  # of the group's devices, which it is told with the next heartbeat
        self._lock = threading.Lock()
        try:
            started = time.monotonic()
            welcome = ask(self._channel, Hello(home.roster, own_address), Welcome, _ANSWER_S)
            self.hello_s = time.monotonic() - started
            home.learn(checked_roster(welcome.roster).with_member(Member(member.certificate, self.address)))
        except EdgerunError:
            self._channel.close()
            raise
        self.device: Device = welcome.device

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def why_lost(self) -> str:
        """Why the device is taken for dead; "" while it is not."""
        return self._why

    @property
    def round_trip_s(self) -> float:
        """Of the last heartbeat; 0 before the first."""
        return 0.0 if self._heartbeat is None else self._heartbeat.round_trip_s

    def watch(self, job: bytes, lost: Callable[[str], None], patience_s: float = PATIENCE_S) -> None:
        """Ask from now on whether it is there; `lost` is called once, by another thread, when it is not. Whoever waits
        for an answer of it waits no longer then."""

        def note(why: str) -> None:
            self.lose(why)
            self._channel.close()
            lost(why)

        channel = Channel(dial(self._home, self.member.fingerprint, self.address, HEARTBEAT))
        say(channel, Knock(job, 0))
        self._heartbeat = Heartbeat(channel, self.name, note, patience_s, lambda: self.loads)

    @property
    def seat(self) -> Seat:
        """Who it is, and where."""
        return Seat(self.member.fingerprint, self.address)

    def held(self, shards: Sequence[str]) -> tuple[str, ...]:
        """Which of these it has."""
        return ask(self._channel, Have(tuple(shards)), Held, _ANSWER_S).shards

    def give(
        self,
        offer: Offer,
        read: Callable[[int, int], bytes],
        events: EventSink,
        holders: Holders,
        pace: Callable[[], None] = never_waits,
    ) -> int:
        """Have it keep a shard; `read(offset, count)` gives its bytes, unless it gets them from one of the holders. The
        bytes that had to be sent. `pace` is called between pieces. FormatError when it wants what there is not;
        EdgerunError when it gets what was not offered: the file was changed."""
        missing = ask(self._channel, offer, Missing, _LOOK_THROUGH_S).pieces
        sent = 0
        for i, number in enumerate(missing):
            if number >= len(offer.pieces):
                raise FormatError(f"{self.name} wants a piece that there is not")
            if not self._fetched(offer, number, holders, pace):
                pace()
                sent += self._sent(offer, number, read, holders)
            events(Progress(f"to {self.name}", i + 1, len(missing), "pieces"))
        holders.add([offer.shard], self.seat)
        return sent

    def _fetched(self, offer: Offer, number: int, holders: Holders, pace: Callable[[], None]) -> bool:
        """Whether it got a piece from another device."""
        receiver = self.member.fingerprint
        while (source := holders.source_for(offer.shard, receiver)) is not None:
            pace()
            began = time.monotonic()
            if not ask(self._channel, Fetch(offer.shard, number, source), Missing, _FETCH_S).pieces:
                holders.note(source.fingerprint, receiver, _piece_bytes(offer, number), time.monotonic() - began)
                return True
            holders.remove(offer.shard, source)
        return False

    def _sent(self, offer: Offer, number: int, read: Callable[[int, int], bytes], holders: Holders) -> int:
        began = time.monotonic()
        data = read(number * PIECE_BYTES, _piece_bytes(offer, number))
        ask(self._channel, Piece(offer.shard, number, data), Done, _KEEP_S)
        holders.note(HEAD, self.member.fingerprint, len(data), time.monotonic() - began)
        return len(data)

    def want(self, shard: str, number: int) -> Piece:
        """A piece of a shard that it has. EdgerunError."""
        return ask(self._channel, Want(shard, number), Piece, _WANT_S)

    def begin(self, begin: Begin) -> None:
        """Have it take its seat in a job."""
        ask(self._channel, begin, Done, _LOOK_THROUGH_S)

    def end(self, job: bytes) -> None:
        """Have it stop. One that does not hear any more is lost."""
        try:
            ask(self._channel, End(job), Done, _LAST_WORD_S)
        except (NetworkError, FormatError) as error:
            self.lose(f"{self.name}: {error}")

    def put_me_out(self) -> None:
        """Tell it that this device leaves for good."""
        ask(self._channel, Leave(), Done, _ANSWER_S)

    def look(self) -> Seen:
        """What the group does that it takes part in."""
        return ask(self._channel, Look(), Seen, _ANSWER_S)

    def refresh(self) -> None:
        """Tell each other again who is known."""
        welcome = ask(self._channel, Hello(self._home.roster, ""), Welcome, _ANSWER_S)
        self._home.learn(checked_roster(welcome.roster))

    def lose(self, why: str) -> None:
        """Take it for dead."""
        self._why = self._why or why

    def unwatch(self) -> None:
        """Ask no more whether it is there."""
        with self._lock:
            heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.close()

    def close(self) -> None:
        """A job that it does for this device ends. Harmless when repeated."""
        self.unwatch()
        self._channel.close()


def _piece_bytes(offer: Offer, number: int) -> int:
    return min(PIECE_BYTES, offer.n_bytes - number * PIECE_BYTES)


def tell_all(home: Home) -> None:
    """Tell every device that answers whom this one knows, and hear whom they know."""
    for member in home.others():
        with contextlib.suppress(EdgerunError):  # it hears of it later
            Remote(home, member).close()
