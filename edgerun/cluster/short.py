"""Sums of short arrays, as a token's are: one write and one read for each peer, few calls, nothing allocated.

A device that decodes does such sums between products whose weights push everything else out of its caches, so what
counts is how much code and how many objects a sum touches: cold, it takes several times as long as in a loop of its
own. So all that is the same from sum to sum is looked up once. Frames are short enough for what systems buffer, so that
nobody waits for a reader in order to write, and peers are read one after the other: whoever waits for the first finds
the others' there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.wire import CALL_AT, HEADER, MAGIC, VERSION, Link
from edgerun.cluster.wire_format import U8

MOST_BYTES = 16_000  # of a body: with its header it is one record of TLS

_CALL = struct.Struct("<I")


class Short:
    """One rank's buffers for sums of `count` numbers, and the two ways that are worth it: what `ways.star` and
    `ways.mesh` do with longer arrays, to the same bits. They change x (count,), flat and contiguous, in place."""

    def __init__(self, peers: Peers, count: int, partners: Sequence[int]) -> None:
        """partners: ranks that this one sends to and receives from."""
        self._peers = peers
        self._wire = wire = peers.wire
        n_bytes = wire.n_bytes(count)
        self._size = size = HEADER.size + n_bytes
        frames = np.empty((peers.size, -(-size // 64) * 64), np.uint8)[:, :size]  # all ranks', one below the other
        HEADER.pack_into(frames[peers.rank].data, 0, MAGIC, VERSION, wire.code, n_bytes, 0)
        self._body = frames[peers.rank, HEADER.size :]
        self._frame = frames[peers.rank].data
        self._header = self._frame[: HEADER.size]  # what the others' frames begin with, too: all are at the same call
        # Each rank begins with the one after it: no cable has all frames at once.
        turn = sorted(partners, key=lambda rank: (rank - peers.rank) % peers.size)
        self._sends = [(peers.links[rank], peers.links[rank].write) for rank in turn]
        # (ranks, count) f32: what all of them sent, as it is read. Of exact numbers these are the frames themselves.
        self._numbers = (
            frames[:, HEADER.size :].view(np.float32) if wire.is_exact else np.empty((peers.size, count), np.float32)
        )
        self._inboxes = [_Inbox(peers.links[rank], frames[rank], self._numbers[rank]) for rank in partners]

    def mesh(self, x: F32) -> None:
        """Everybody to everybody; added in the order of ranks."""
        self._send(x)
        if not self._wire.is_exact:
            self._wire.read(self._body, self._numbers[self._peers.rank])
        self._receive()
        np.add.reduce(self._numbers, axis=0, out=x)  # row after row

    def star(self, x: F32) -> None:
        """By way of the head, which adds in the same order."""
        if self._peers.rank != HEAD:
            self._send(x)
            self._receive()
            x[...] = self._numbers[HEAD]
            return
        _CALL.pack_into(self._frame, CALL_AT, self._peers.call & 0xFFFFFFFF)  # what is expected
        self._receive()
        for each in self._numbers[1:]:
            np.add(x, each, x)
        self._send(x)
        if not self._wire.is_exact:
            self._wire.read(self._body, x)

    def _send(self, x: F32) -> None:
        frame, size = self._frame, self._size
        _CALL.pack_into(frame, CALL_AT, self._peers.call & 0xFFFFFFFF)
        self._wire.write(x, self._body)
        if not self._peers.is_patient:
            self._peers.be_patient(True)
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
        size, header, exact = self._size, self._header, self._wire.is_exact
        if not self._peers.is_patient:
            self._peers.be_patient(True)
        for inbox in self._inboxes:
            link = inbox.link
            if link.is_closed:
                link.check_open()
            try:
                got = inbox.read(size, inbox.view)
            except (OSError, ValueError) as error:
                got = link.held_up(error, self._peers.is_lost)
            else:
                link.check_alive(got)
            if got != size or inbox.header != header:
                link.take(inbox.view, header, got, self._peers.is_lost)
            link.received_bytes += size
            if not exact:
                self._wire.read(inbox.body, inbox.numbers)


class _Inbox:
    """Where a peer's frames arrive, and their numbers."""

    def __init__(self, link: Link, frame: U8, numbers: F32) -> None:
        self.link = link
        self.read = link.read
        self.view = frame.data
        self.header = self.view[: HEADER.size]
        self.body = frame[HEADER.size :]
        self.numbers = numbers
