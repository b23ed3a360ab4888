"""Sums of short arrays, as a token's are: one write and one read for each peer, few calls, nothing allocated.

A device that decodes does such sums between products whose weights push everything else out of its caches, so what
counts is how much code and how many objects a sum touches: cold, it takes several times as long as in a loop of its
own. So all that is the same from sum to sum is looked up once. Frames are short enough for what systems buffer, so that
nobody waits for a reader in order to write, and peers are read one after the other: whoever waits for the first finds
the others' there.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.units import Folding, in_order
from edgerun.cluster.wire import CALL_AT, HEADER, MAGIC, VERSION, Link
from edgerun.cluster.wire_format import U8, WireFormat
from edgerun.errors import LostPeerError

MOST_BYTES = 16_000  # of a body: with its header it is one record of TLS

_CALL = struct.Struct("<I")


class Short:
    """One rank's buffers for sums of `count` numbers, by the star or the mesh: what `ways` and `folds` do with longer
    arrays, to the same bits. folding: what is added to what, of how many partial sums of each rank."""

    def __init__(
        self, peers: Peers, count: int, folding: Folding, wire: WireFormat, way: Literal["star", "mesh"]
    ) -> None:
        self._peers, self._wire = peers, wire
        self._is_head, self._is_star = peers.rank == HEAD, way == "star"
        sizes = [wire.n_bytes(each * count) for each in folding.counts]
        frames = np.empty((peers.size, -(-(HEADER.size + max(sizes)) // 64) * 64), np.uint8)  # one below the other
        self._frame, self._body = _begun(frames[peers.rank], wire, sizes[peers.rank])
        # (ranks, numbers) f32: what all of them sent, as it is read. Of exact numbers these are the frames themselves.
        numbers = np.empty((peers.size, max(folding.counts) * count), np.float32)
        if wire.is_exact:
            numbers = frames[:, HEADER.size : HEADER.size + max(sizes)].view(np.float32)
        self._numbers = numbers
        self._mine = numbers[peers.rank, : folding.counts[peers.rank] * count]
        each_of = zip(numbers, folding.counts, strict=True)
        self._rows = [row for each, nodes in each_of for row in each[: nodes * count].reshape(nodes, count)]
        *self._steps, (_, self._last) = folding.steps  # the last makes the first the sum
        self._is_plain = folding == in_order(peers.size)
        partners = [HEAD] if self._is_star and not self._is_head else peers.in_turn
        self._sends = [(peers.links[rank], peers.links[rank].write) for rank in partners]
        self._headers = {sizes[peers.rank]: self._frame[: HEADER.size]}  # what frames of each size begin with
        down = np.empty(HEADER.size + wire.n_bytes(count), np.uint8)  # what a star's head hands out
        self._down_frame, self._down_body = _begun(down, wire, down.size - HEADER.size)
        self._down = np.empty(count, np.float32)
        if self._is_star and not self._is_head:
            self._inboxes = [self._inbox(HEAD, down, self._down_body.size, self._down)]
        else:
            self._inboxes = [self._inbox(rank, frames[rank], sizes[rank], numbers[rank]) for rank in sorted(partners)]
        self._expected = list(self._headers.values())

    def __call__(self, nodes: F32, out: F32) -> None:
        """out (count,) = the sum. nodes: this rank's partial sums, one after the other; `out` may be the same."""
        try:
            self._sum(nodes, out)
        except LostPeerError as error:
            raise self._peers.explained(error) from error

    def _sum(self, nodes: F32, out: F32) -> None:
        call = self._peers.call & 0xFFFFFFFF
        for header in self._expected:  # all are at the same call
            _CALL.pack_into(header, CALL_AT, call)
        if not self._peers.is_patient:
            self._peers.be_patient(True)
        if not self._is_star:
            self._wire.write(nodes, self._body)
            self._send(self._frame)
            if not self._wire.is_exact:
                self._wire.read(self._body, self._mine)
            self._receive()
            self._add(out)
        elif self._is_head:
            self._receive()
            self._mine[...] = nodes
            self._add(out)
            _CALL.pack_into(self._down_frame, CALL_AT, call)
            self._wire.write(out, self._down_body)
            self._send(self._down_frame)
            if not self._wire.is_exact:
                self._wire.read(self._down_body, out)
        else:
            self._wire.write(nodes, self._body)
            self._send(self._frame)
            self._receive()
            if self._wire.is_exact:
                self._wire.read(self._down_body, out)
            else:
                out[...] = self._down

    def _add(self, out: F32) -> None:
        if self._is_plain:
            np.add.reduce(self._numbers, axis=0, out=out)  # row after row
            return
        rows = self._rows
        for into, other in self._steps:
            np.add(rows[into], rows[other], rows[into])
        np.add(rows[0], rows[self._last], out)

    def _inbox(self, rank: int, buffer: U8, n_bytes: int, numbers: F32) -> _Inbox:
        frame = buffer[: HEADER.size + n_bytes]
        header = self._headers.get(n_bytes)
        if header is None:
            header = self._headers[n_bytes] = _begun(np.empty(HEADER.size, np.uint8), self._wire, n_bytes)[0]
        return _Inbox(self._peers.links[rank], frame, header, numbers)

    def _send(self, frame: memoryview) -> None:
        size = len(frame)
        for link, write in self._sends:
            if link.is_closed:
                link.check_open()
            try:
                sent = write(frame)
            except (OSError, ValueError) as error:
                sent = link.held_up(error, self._peers.is_lost)
            link.sent_bytes += sent
            if sent < size:
                link.put(frame[sent:], self._peers.is_lost)

    def _receive(self) -> None:
        exact = self._wire.is_exact
        for inbox in self._inboxes:
            link, size = inbox.link, inbox.size
            if link.is_closed:
                link.check_open()
            try:
                got = inbox.read(size, inbox.view)
            except (OSError, ValueError) as error:
                got = link.held_up(error, self._peers.is_lost)
            else:
                link.check_alive(got)
            if got != size or inbox.header != inbox.expected:
                link.take(inbox.view, inbox.expected, got, self._peers.is_lost)
            link.received_bytes += size
            if not exact:
                self._wire.read(inbox.body, inbox.numbers)


class _Inbox:
    """Where a peer's frames arrive, what they begin with, and their numbers."""

    def __init__(self, link: Link, frame: U8, expected: memoryview, numbers: F32) -> None:
        self.link = link
        self.read = link.read
        self.size = frame.size
        self.view = frame.data
        self.header = self.view[: HEADER.size]
        self.expected = expected
        self.body = frame[HEADER.size :]
        self.numbers = numbers


def _begun(buffer: U8, wire: WireFormat, n_bytes: int) -> tuple[memoryview, U8]:
    """A frame of so many bytes at the buffer's start, and its body."""
    HEADER.pack_into(buffer.data, 0, MAGIC, VERSION, wire.code, n_bytes, 0)
    return buffer[: HEADER.size + n_bytes].data, buffer[HEADER.size : HEADER.size + n_bytes]
