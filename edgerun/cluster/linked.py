"""A group whose ranks are connected: what `Collective` promises, over links.

The head's messages, what it hands out and what it collects go straight to and from it, exactly. Only sums have several
ways (`ways.py`) and a choice of format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edgerun.cluster.collective import F32, HEAD, MOST_MESSAGE_BYTES
from edgerun.cluster.wire import BYTES, Frame, IsLost, Link, exchange
from edgerun.cluster.wire_format import EXACT, WireFormat
from edgerun.errors import LostPeerError, UsageError

MOST_GATHERED_BYTES = 1 << 26  # from one rank: a vocabulary's logits for many rows


class Peers:
    """This rank's links and buffers, and the exchanges that ways are made of."""

    def __init__(self, rank: int, size: int, links: Mapping[int, Link], wire: WireFormat, is_lost: IsLost) -> None:
        needed = set(range(size)) if rank == HEAD else {HEAD}
        if not 0 <= rank < size or not needed - {rank} <= set(links) <= set(range(size)) - {rank}:
            raise UsageError(f"rank {rank} of {size} cannot have links to the ranks {sorted(links)}")
        self.rank = rank
        self.size = size
        self.links = dict(links)
        self.wire = wire
        self.others = [other for other in range(size) if other != rank]
        self._is_lost = is_lost
        self._call = 0
        self._frames: dict[int, Frame] = {}
        self._scratch = np.empty(0, np.float32)

    def next_call(self) -> None:
        """The group does something together. All exchanges of it carry its number."""
        self._call += 1

    def write(self, x: F32, wire: WireFormat, slot: int = 0) -> Frame:
        """A frame with the numbers of `x` (flat); there are as many buffers as slots."""
        frame = self._frames.setdefault(slot, Frame())
        wire.write(x, frame.begin(wire.code, self._call, wire.n_bytes(x.size)))
        return frame

    def write_again(self, rank: int) -> Frame:
        """A frame with the very bytes that came from a rank: written anew, numbers could be others."""
        body = self.links[rank].body
        frame = self._frames.setdefault(0, Frame())
        frame.begin(self.wire.code, self._call, body.size)[...] = body
        return frame

    def write_bytes(self, message: bytes) -> Frame:
        """A frame with a message."""
        frame = self._frames.setdefault(0, Frame())
        frame.begin(BYTES, self._call, len(message))[...] = np.frombuffer(message, np.uint8)
        return frame

    def swap(self, sends: Mapping[int, Frame], receives: Mapping[int, int], wire: WireFormat) -> None:
        """Send frames to ranks and receive as many numbers from ranks as `receives` says."""
        for rank, count in receives.items():
            self.links[rank].expect(wire.code, self._call, wire.n_bytes(count), exactly=True)
        self._exchange(sends, receives)

    def receive_up_to(self, ranks: Iterable[int], code: int, most_bytes: int) -> None:
        """One frame from each of the ranks, of whatever length."""
        ranks = list(ranks)
        for rank in ranks:
            self.links[rank].expect(code, self._call, most_bytes, exactly=False)
        self._exchange({}, ranks)

    def read(self, rank: int, out: F32, wire: WireFormat) -> None:
        """What came from a rank, into `out` (flat)."""
        wire.read(self.links[rank].body, out)

    def add(self, rank: int, total: F32, wire: WireFormat) -> None:
        """Add what came from a rank to `total` (flat)."""
        if wire.is_exact:
            total += self.links[rank].body.view(np.float32)
            return
        scratch = self.scratch(total.size)
        wire.read(self.links[rank].body, scratch)
        total += scratch

    def scratch(self, count: int) -> F32:
        if count > self._scratch.size:
            self._scratch = np.empty(count, np.float32)
        return self._scratch[:count]

    def _exchange(self, sends: Mapping[int, Frame], receives: Iterable[int]) -> None:
        sending = [(self.links[rank], frame.whole) for rank, frame in sends.items()]
        try:
            exchange(sending, [self.links[rank] for rank in receives], self._is_lost)
        except LostPeerError as error:  # links of a group that is over are closed by another thread: it knows why
            raise LostPeerError(self._is_lost() or str(error)) from error


Way = Callable[[F32, Peers], None]  # puts the sum of all ranks' x (flat, contiguous) in its place


class LinkedCollective:
    """One rank: see `collective.Collective`. It takes the links over."""

    def __init__(self, peers: Peers, way: Way) -> None:
        self._peers = peers
        self._way = way

    @property
    def rank(self) -> int:
        return self._peers.rank

    @property
    def size(self) -> int:
        return self._peers.size

    @property
    def sent_bytes(self) -> int:
        """By this rank so far, headers included, before encryption."""
        return sum(link.sent_bytes for link in self._peers.links.values())

    def all_reduce(self, x: F32) -> None:
        self._peers.next_call()
        if self.size > 1:
            self._way(_flat(x), self._peers)

    def broadcast(self, x: F32) -> None:
        peers, flat = self._peers, _flat(x)
        peers.next_call()
        if peers.rank == HEAD:
            peers.swap(dict.fromkeys(peers.others, peers.write(flat, EXACT)), {}, EXACT)
        else:
            peers.swap({}, {HEAD: flat.size}, EXACT)
            peers.read(HEAD, flat, EXACT)

    def gather(self, x: F32) -> list[F32]:
        peers, flat = self._peers, _flat(x)
        peers.next_call()
        if peers.rank != HEAD:
            if 4 * flat.size > MOST_GATHERED_BYTES:
                raise UsageError(f"{flat.size} numbers from one rank; at most {MOST_GATHERED_BYTES // 4} are gathered")
            peers.swap({HEAD: peers.write(flat, EXACT)}, {}, EXACT)
            return []
        peers.receive_up_to(peers.others, EXACT.code, MOST_GATHERED_BYTES)
        bodies = [peers.links[rank].body for rank in peers.others]
        if any(body.size % 4 for body in bodies):
            raise LostPeerError("a rank gave what are no whole numbers")
        return [flat, *(body.view(np.float32) for body in bodies)]

    def announce(self, message: bytes) -> bytes:
        peers = self._peers
        peers.next_call()
        if peers.rank == HEAD:
            if len(message) > MOST_MESSAGE_BYTES:
                raise UsageError(f"a message of {len(message)} bytes; at most {MOST_MESSAGE_BYTES} can be announced")
            peers.swap(dict.fromkeys(peers.others, peers.write_bytes(message)), {}, EXACT)
            return message
        peers.receive_up_to([HEAD], BYTES, MOST_MESSAGE_BYTES)
        return peers.links[HEAD].body.tobytes()

    def close(self) -> None:
        for link in self._peers.links.values():
            link.close()


def _flat(x: F32) -> F32:
    if not x.flags.c_contiguous or x.dtype != np.float32:
        raise UsageError("what a group works on must be C-contiguous f32")
    return x.reshape(-1)
