"""Sums of short arrays, as a token's are: one write and one read for each peer, few calls, nothing allocated.

A device that decodes does such sums between products whose weights push everything else out of its caches, so what
counts is how much code and how many objects a sum touches: cold, it takes several times as long as in a loop of its
own. So all that is the same from sum to sum is looked up once. Frames are short enough for what systems buffer, so that
nobody waits for a reader in order to write, and peers are read one after the other: whoever waits for the first finds
the others' there.
"""

from __future__ import annotations

import struct

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.wire import CALL_AT, HEADER, Frame, Link
from edgerun.cluster.wire_format import U8

MOST_BYTES = 16_000  # of a body: with its header it is one record of TLS

_CALL = struct.Struct("<I")


class Short:
    """One rank's buffers for sums of `count` numbers, and the two ways that are worth it: what `ways.star` and
    `ways.mesh` do with longer arrays, to the same bits. They change x (count,), flat and contiguous, in place."""

    def __init__(self, peers: Peers, count: int) -> None:
        self._peers = peers
        self._wire = wire = peers.wire
        n_bytes = wire.n_bytes(count)
        frame = Frame()
        self._body = frame.begin(wire.code, 0, n_bytes)
        self._frame = frame.whole
        self._header = self._frame[: HEADER.size]  # what the others' frames begin with, too: all are at the same call
        self._size = HEADER.size + n_bytes
        # Each rank begins with the one after it: no cable has all frames at once.
        turn = [(peers.rank + step) % peers.size for step in range(1, peers.size)]
        self._sends = [(peers.links[rank], peers.links[rank].write) for rank in turn if rank in peers.links]
        inboxes = [_Inbox(link, self._size, count, exact=wire.is_exact) for _, link in sorted(peers.links.items())]
        self._inboxes = [(each, each.link.read, each.view, each.header) for each in inboxes]
        mine = self._body.view(np.float32) if wire.is_exact else np.empty(count, np.float32)
        self._mine = mine  # what others read of this rank's frame
        self._parts = [each.numbers for each in inboxes]  # all that a mesh adds, in the order of ranks
        self._parts.insert(peers.rank, mine)

    def mesh(self, x: F32) -> None:
        """Everybody to everybody; added in the order of ranks."""
        self._send(x)
        if not self._wire.is_exact:
            self._wire.read(self._body, self._mine)
        self._receive()
        first, second, *others = self._parts
        np.add(first, second, x)
        for part in others:
            np.add(x, part, x)

    def star(self, x: F32) -> None:
        """By way of the head, which adds in the same order."""
        if self._peers.rank != HEAD:
            self._send(x)
            self._receive()
            x[...] = self._inboxes[0][0].numbers
            return
        _CALL.pack_into(self._frame, CALL_AT, self._peers.call & 0xFFFFFFFF)  # what is expected
        self._receive()
        for each, *_ in self._inboxes:
            np.add(x, each.numbers, x)
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
        for inbox, read, view, its_header in self._inboxes:
            if inbox.link.is_closed:
                inbox.link.check_open()
            try:
                got = read(size, view)
            except (OSError, ValueError) as error:
                got = inbox.link.held_up(error, self._peers.is_lost)
            else:
                inbox.link.check_alive(got)
            if got != size or its_header != header:
                inbox.link.take(view, header, got, self._peers.is_lost)
            inbox.link.received_bytes += size
            if not exact:
                self._wire.read(inbox.body, inbox.numbers)


class _Inbox:
    """Where a peer's frames arrive, and their numbers."""

    def __init__(self, link: Link, size: int, count: int, *, exact: bool) -> None:
        frame: U8 = np.empty(size, np.uint8)
        self.link = link
        self.view = frame.data
        self.header = self.view[: HEADER.size]
        self.body = frame[HEADER.size :]
        self.numbers: F32 = self.body.view(np.float32) if exact else np.empty(count, np.float32)
