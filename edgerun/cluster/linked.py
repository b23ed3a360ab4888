"""A group whose ranks are connected: what `Collective` promises, over links.

The head's messages, what it hands out and what it collects go straight to and from it, exactly. Only sums have several
ways (`ways.py`) and a choice of format.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.cluster.collective import F32, HEAD, MOST_MESSAGE_BYTES
from edgerun.cluster.peers import Peers
from edgerun.cluster.sum_scripts import RecordedSums
from edgerun.cluster.units import Folding
from edgerun.cluster.ways import FOLDING, Way
from edgerun.cluster.wire import BYTES
from edgerun.cluster.wire_format import EXACT
from edgerun.errors import LostPeerError, UsageError
from edgerun.kernels.eighths import Rounding

_FAR_S = 2e-3  # from here on Python's sums are as fast as launches, beside the way there and back
_F32 = np.dtype(np.float32)
MOST_GATHERED_BYTES = 1 << 26  # from one rank: a vocabulary's logits for many rows


class LinkedCollective:
    """One rank: see `collective.Collective`. It takes the links over."""

    def __init__(self, peers: Peers, way: Way, hop_s: float = 0.0) -> None:
        """hop_s: what was measured of its links (`links.Links`), if it was."""
        self.peers = peers
        self._hop_s = hop_s
        self._way = way
        can_record = peers.size > 1 and way.name in FOLDING
        self.recorded = RecordedSums(peers, is_star=way.name == "star") if can_record else None

    @property
    def rank(self) -> int:
        return self.peers.rank

    @property
    def size(self) -> int:
        return self.peers.size

    @property
    def sent_bytes(self) -> int:
        """By this rank so far, headers included, before encryption."""
        return sum(link.sent_bytes for link in self.peers.links.values())

    def all_reduce(self, x: F32) -> None:
        peers = self.peers
        peers.next_sum(x.size)
        if peers.size > 1:
            self._way.all_reduce(_flat(x), peers)

    def reduce_long(self, x: F32, ends: bool) -> bool:
        peers = self.peers
        peers.next_sum(x.size)
        return self._way.reduce_long(_flat(x), ends, peers) if peers.size > 1 else ends

    def round_with(self, rounding: Rounding) -> None:
        self.peers.rounding = rounding

    def wait_with(self, threads: int) -> None:
        """Threads that help look for work while a launch waits for a sum, and sleep while Python does."""
        if threads > 1 and self._hop_s > _FAR_S:
            self.recorded = None

    def fold(self, nodes: F32, folding: Folding, out: F32) -> None:
        peers = self.peers
        peers.next_call()
        if peers.size > 1:
            self._way.fold(nodes, folding, _flat(out), peers)
        else:
            out[...] = nodes[0]

    def broadcast(self, x: F32) -> None:
        peers, flat = self.peers, _flat(x)
        peers.next_call()
        if peers.rank == HEAD:
            peers.swap(dict.fromkeys(peers.others, peers.write(flat, EXACT)), {}, EXACT)
        else:
            peers.swap({}, {HEAD: flat.size}, EXACT)
            peers.read(HEAD, flat, EXACT)

    def scatter(self, parts: Sequence[F32], out: F32) -> None:
        peers = self.peers
        peers.next_call()
        if peers.rank == HEAD:
            peers.swap({rank: peers.write(_flat(parts[rank]), EXACT, rank) for rank in peers.others}, {}, EXACT)
        else:
            peers.swap({}, {HEAD: out.size}, EXACT)
            peers.read(HEAD, _flat(out), EXACT)

    def gather(self, x: F32) -> list[F32]:
        peers, flat = self.peers, _flat(x)
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
        peers = self.peers
        peers.next_call()
        if peers.rank == HEAD:
            if len(message) > MOST_MESSAGE_BYTES:
                raise UsageError(f"a message of {len(message)} bytes; at most {MOST_MESSAGE_BYTES} can be announced")
            peers.swap(dict.fromkeys(peers.others, peers.write_bytes(message)), {}, EXACT)
            return message
        peers.receive_up_to([HEAD], BYTES, MOST_MESSAGE_BYTES)
        return peers.links[HEAD].body.tobytes()

    def close(self) -> None:
        for link in self.peers.links.values():
            link.close()


def _flat(x: F32) -> F32:
    if not x.flags.c_contiguous or (x.dtype is not _F32 and x.dtype != _F32):  # the first costs next to nothing
        raise UsageError("what a group works on must be C-contiguous f32")
    return x if x.ndim == 1 else x.reshape(-1)
