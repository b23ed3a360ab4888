"""The data plane: frames of numbers between two ranks, over one connection that both keep.

    frame   magic "eR", u8 version, u8 what the body is, u32 length of the body, u32 call, then the body
    call    counts what the group does together: both sides must be at the same, else one of them is lost

`exchange` reads and writes several connections at once, whatever arrives first, so that no two ranks that send to each
other can wait for each other. Short frames, which systems buffer, are put and taken one by one (`short.py`). Buffers
are kept; a header and its body are one write. A length is compared with what the receiver expects before a byte of the
body is read; of a short frame its header before more of it is waited for.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from edgerun.cluster.bare_calls import bare_calls, holds_some
from edgerun.cluster.wire_format import U8
from edgerun.errors import LostPeerError
from edgerun.kernels.sum_abi import IS_CLOSED

HEADER = struct.Struct("<2sBBII")
CALL_AT = 8  # where it stands in the header
BYTES = 0  # a frame whose body is no numbers; numbers have their format's code
MAGIC = b"eR"
VERSION = 1
_LOOK_S = 0.1  # how long a wait goes on before somebody asks whether the other one is still there
_LOOK = struct.pack("ll", 0, int(1e6 * _LOOK_S))  # the same for the system
_PATIENT_S = None if os.name == "posix" else _LOOK_S  # for Python: it waits as long as the system does
_NOT_NOW = ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError
_ONE_READ_BYTES = 1 << 20
_RECORD_BYTES = 17_000  # of TLS, at most
_CAN_WAIT_FOR_MORE = sys.platform == "linux"

IsLost = Callable[[], str]  # why a rank of the group is taken for dead; "" as long as none is


Write = Callable[[memoryview], int]  # how many bytes went
Wait = Callable[[], Sequence[int]]  # descriptors that something can be done with; none after a while
Read = Callable[[int, memoryview], int]  # at most so many bytes, into there: how many came


class Frame:
    """What this rank sends: a header and a body in one buffer, which is used again."""

    def __init__(self) -> None:
        self._buffer: U8 = np.empty(1 << 14, np.uint8)
        self._n_bytes = 0

    def begin(self, code: int, call: int, n_bytes: int) -> U8:
        """The body (n_bytes), to be filled."""
        self._n_bytes = HEADER.size + n_bytes
        if self._n_bytes > self._buffer.size:
            self._buffer = np.empty(self._n_bytes + (self._n_bytes >> 1), np.uint8)
        HEADER.pack_into(self._buffer.data, 0, MAGIC, VERSION, code, n_bytes, call & 0xFFFFFFFF)
        return self.body

    @property
    def body(self) -> U8:
        return self._buffer[HEADER.size : self._n_bytes]

    @property
    def whole(self) -> memoryview:
        return self._buffer[: self._n_bytes].data


class Link:
    """A connection to the rank `peer`; it takes the socket over. One thread at a time uses it; any may close it."""

    def __init__(self, connection: socket.socket, peer: int) -> None:
        self.peer = peer
        self.received_bytes = 0
        self.sent_bytes = 0
        self.is_closed = False  # ask before `read` and `write`: a descriptor's number is soon another's
        self._socket = connection
        self._pending = connection.pending if isinstance(connection, ssl.SSLSocket) else None
        self.slots = bare_calls(connection)  # as kernels use it; None: they cannot
        self.write, self.read = _calls(connection)
        self._inbox: U8 = np.empty(1 << 14, np.uint8)
        self._inbox_view = self._inbox.data
        self._wakes_at = 1
        self._filled = 0  # bytes of the frame that is coming
        self._wanted = HEADER.size
        self._expected: tuple[int, int, int, bool] = (BYTES, 0, 0, True)
        with contextlib.suppress(OSError):  # a pair of Unix sockets has no such option
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if os.name == "posix":  # it waits within the system's call, and not for a word that this can be made
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, _LOOK)
        connection.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def body(self) -> U8:
        """Of the frame that was received last; lent until the next is expected."""
        return self._inbox[HEADER.size : self._filled]

    def expect(self, code: int, call: int, n_bytes: int, *, exactly: bool) -> None:
        """What the next frame must be: of `n_bytes` `exactly`, or at most."""
        self._expected = (code, call & 0xFFFFFFFF, n_bytes, exactly)
        self._filled = 0
        self._wanted = HEADER.size + (n_bytes if exactly else 0)
        self._make_room(HEADER.size + n_bytes if exactly else self._inbox.size)

    def expect_in(self, buffer: U8, code: int, call: int, n_bytes: int) -> None:
        """As `expect`, of exactly so many bytes, which shall lie in `buffer`, behind the header."""
        self._inbox, self._inbox_view = buffer, buffer.data
        self.expect(code, call, n_bytes, exactly=True)
        self._wake_at(n_bytes - _RECORD_BYTES)

    def _wake_at(self, n_bytes: int) -> None:
        """Waits end when so many bytes are there, where the system can do that: it saves most of them. Of an encrypted
        frame all are there then but what was read of a record before."""
        n_bytes = max(1, n_bytes)
        if _CAN_WAIT_FOR_MORE and n_bytes != self._wakes_at:
            with contextlib.suppress(OSError):  # no TCP, or closed: `read` tells
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n_bytes)
                self._wakes_at = n_bytes

    def put(self, data: memoryview, is_lost: IsLost) -> None:
        """Send the rest of a short frame, which its reader needs not read for it. The link is patient."""
        while data:
            self.check_open()
            try:
                sent = self.write(data)
            except (OSError, ValueError) as error:
                sent = self.held_up(error, is_lost)
            self.sent_bytes += sent
            data = data[sent:]

    def take(self, frame: memoryview, header: memoryview, filled: int, is_lost: IsLost) -> None:
        """Receive the rest of a frame that begins with `header` and fills `frame`, of which `filled` bytes are there.
        The link is patient."""
        while True:
            if filled >= HEADER.size and frame[: HEADER.size] != header:
                _, _, *expected = HEADER.unpack(header)
                raise self._unexpected(frame, *expected)
            if filled == len(frame):
                return
            self.check_open()
            try:
                got = self.read(len(frame) - filled, frame[filled:])
            except (OSError, ValueError) as error:
                got = self.held_up(error, is_lost)
            else:
                self.check_alive(got)
            filled += got

    def held_up(self, error: Exception, is_lost: IsLost) -> int:
        """After a call of a patient link that failed: no bytes moved, and the call may be made again. LostPeerError."""
        if not isinstance(error, (TimeoutError, *_NOT_NOW)):
            raise self._lost(error) from error
        _give_up_if(is_lost)
        return 0

    def check_alive(self, got: int) -> None:
        """LostPeerError where a read that waited got nothing: the connection is over."""
        if got == 0:
            raise LostPeerError(f"rank {self.peer} left the group")

    def be_patient(self, patient: bool) -> None:
        """Whether `read` and `write` wait for `_LOOK_S` (then TimeoutError) or not at all."""
        try:
            self._socket.settimeout(_PATIENT_S if patient else 0.0)
        except OSError as error:
            raise self._lost(error) from error

    def send_most(self, data: memoryview) -> memoryview:
        """What the connection does not take of `data` now."""
        self.check_open()
        try:
            while data:
                sent = self.write(data)  # of TLS one record at a time
                self.sent_bytes += sent
                data = data[sent:]
        except _NOT_NOW:
            pass  # until it can be written to again
        except (OSError, ValueError) as error:
            raise self._lost(error) from error
        return data

    def receive_all(self) -> None:
        """What is there of the frame; `is_whole` tells whether that is all. Asked when something has come: to find
        nothing costs an exception, which takes longer than a small frame."""
        while self._filled < self._wanted:
            end = min(self._wanted, self._filled + _ONE_READ_BYTES)
            self.check_open()
            try:
                got = self.read(end - self._filled, self._inbox_view[self._filled : end])
            except _NOT_NOW:
                if self._wakes_at > 1:
                    self._wake_at(self._wanted - self._filled - _RECORD_BYTES)
                return
            except (OSError, ValueError) as error:
                raise self._lost(error) from error
            self.check_alive(got)
            before = self._filled
            self._filled += got
            self.received_bytes += got
            if before < HEADER.size <= self._filled:
                self._check_header()
        self._wake_at(1)

    @property
    def holds_some(self) -> bool:
        """Whether something has come that was read from the socket already: no wait would tell."""
        if self.slots is not None:
            return holds_some(self.slots)
        return self._pending is not None and self._pending() > 0

    @property
    def is_whole(self) -> bool:
        return self._filled == self._wanted

    def close(self) -> None:
        """Harmless when repeated, and while another thread waits for the connection: its wait ends."""
        self.is_closed = True
        if self.slots is not None:
            self.slots[IS_CLOSED] = 1
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def check_open(self) -> None:
        """LostPeerError once it was closed here."""
        if self.is_closed:
            raise LostPeerError("a connection was closed")

    def _check_header(self) -> None:
        magic, version, code, n_bytes, call = HEADER.unpack_from(self._inbox.data)
        wanted_code, wanted_call, wanted_bytes, exactly = self._expected
        fits = n_bytes == wanted_bytes if exactly else n_bytes <= wanted_bytes
        if (magic, version, code, call) != (MAGIC, VERSION, wanted_code, wanted_call) or not fits:
            raise self._unexpected(self._inbox.data, wanted_code, wanted_bytes, wanted_call, exactly)
        self._wanted = HEADER.size + n_bytes
        self._make_room(self._wanted)

    def _unexpected(self, frame: memoryview, code: int, n_bytes: int, call: int, exactly: bool = True) -> LostPeerError:
        magic, version, its_code, its_bytes, its_call = HEADER.unpack_from(frame)
        if magic != MAGIC or version != VERSION:
            return LostPeerError(f"rank {self.peer} sent what is no frame of this version")
        return LostPeerError(
            f"rank {self.peer} sent a frame of kind {its_code}, {its_bytes} bytes, call {its_call}, where one of kind "
            f"{code}, {n_bytes} bytes{'' if exactly else ' at most'}, call {call} had its place"
        )

    def _make_room(self, n_bytes: int) -> None:
        if n_bytes > self._inbox.size:
            larger = np.empty(n_bytes + (n_bytes >> 1), np.uint8)
            larger[: self._filled] = self._inbox[: self._filled]
            self._inbox, self._inbox_view = larger, larger.data

    def _lost(self, error: Exception) -> LostPeerError:
        return LostPeerError(f"the connection to rank {self.peer} broke: {error}")


def exchange(sends: Iterable[tuple[Link, memoryview]], receives: Iterable[Link], is_lost: IsLost) -> None:
    """Send frames and receive those that were expected, all at the same time. LostPeerError when a connection breaks,
    a frame is not what was expected, or `is_lost` says so while nothing moves."""
    sending: dict[int, tuple[Link, memoryview]] = {}
    for link, data in sends:
        left = link.send_most(data)
        if left:
            sending[link.fileno()] = link, left
    receiving: dict[int, Link] = {}
    for link in receives:
        if link.holds_some:
            link.receive_all()
        if not link.is_whole:
            receiving[link.fileno()] = link
    wait: Wait | None = None  # for what is in both
    while sending or receiving:
        wait = wait or _waiting(sending, receiving)
        for number in _ready(wait, is_lost):
            if number in receiving:
                receiving[number].receive_all()
                if receiving[number].is_whole:
                    del receiving[number]
                    wait = None
            if number in sending:
                link, data = sending.pop(number)
                left = link.send_most(data)
                if left:
                    sending[number] = link, left
                else:
                    wait = None


def _ready(wait: Wait, is_lost: IsLost) -> Sequence[int]:
    """Descriptors that can be read or written, once there are some."""
    while True:
        found = wait()
        if found:
            return found
        _give_up_if(is_lost)


def _waiting(sending: Collection[int], receiving: Collection[int]) -> Wait:
    """What waits for one of these descriptors. LostPeerError for one that was closed."""
    if -1 in sending or -1 in receiving:
        raise LostPeerError("a connection was closed")
    if not hasattr(select, "poll"):
        reads, writes = list(receiving), list(sending)

        def look() -> list[int]:
            readable, writable, _ = select.select(reads, writes, [], _LOOK_S)
            return [*readable, *writable]

        return look
    poll: Any = select.poll()
    for number in receiving:
        poll.register(number, select.POLLIN)
    for number in sending:
        poll.register(number, select.POLLOUT | (select.POLLIN if number in receiving else 0))
    return lambda: [number for number, _ in poll.poll(1000 * _LOOK_S)]


def _calls(connection: socket.socket) -> tuple[Write, Read]:
    """What writes to and reads from a connection."""
    if isinstance(connection, ssl.SSLSocket):
        # What its own methods call, where it can be had: they are three functions deep, and short sums feel it.
        bare: Any = getattr(connection, "_sslobj", None) or connection
        return bare.write, bare.read
    return connection.send, lambda count, into: connection.recv_into(into, count)


def _give_up_if(is_lost: IsLost) -> None:
    why = is_lost()
    if why:
        raise LostPeerError(why)


def patience(wait_s: float) -> IsLost:
    """An `IsLost` for a group that nobody watches: it gives up after so long."""
    end = time.monotonic() + wait_s
    return lambda: f"nothing moved for {wait_s:.0f} s" if time.monotonic() > end else ""
