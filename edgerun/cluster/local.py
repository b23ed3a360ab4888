"""A group whose ranks are threads of one process: for tests, and to try shares out on one device."""

from __future__ import annotations

from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np

from edgerun.cluster.collective import F32, HEAD, MOST_MESSAGE_BYTES, Collective
from edgerun.cluster.units import Folding
from edgerun.errors import LostPeerError, UsageError
from edgerun.kernels.eighths import Rounding

_PATIENCE_S = 60.0  # with a rank that never comes, so that no mistake waits for ever

_Way = SimpleQueue[bytes | None]  # from one rank to one other; None: it left


def local_group(size: int) -> Sequence[Collective]:
    """The ranks of a group of `size`, each for a thread of its own. UsageError for a group of nobody."""
    if size < 1:
        raise UsageError(f"a group of {size} ranks; it needs one at least")
    ways: list[list[_Way]] = [[SimpleQueue() for _ in range(size)] for _ in range(size)]  # [from][to]
    return [LocalCollective(rank, ways) for rank in range(size)]


class LocalCollective:
    """One rank: see `collective.Collective`."""

    recorded = None

    def __init__(self, rank: int, ways: list[list[_Way]]) -> None:
        self._rank = rank
        self._ways = ways
        self._is_closed = False

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return len(self._ways)

    def all_reduce(self, x: F32) -> None:
        mine = x.tobytes()
        self._send(mine, range(self.size))
        total = np.zeros(x.size, np.float32)
        for rank in range(self.size):
            part = mine if rank == self._rank else self._receive(rank)
            total = _floats(part, x.size) if rank == 0 else total + _floats(part, x.size)
        x[...] = total.reshape(x.shape)

    def reduce_long(self, x: F32, ends: bool) -> bool:
        with_end = np.append(x, np.float32(ends))
        self.all_reduce(with_end)
        x[...] = with_end[:-1].reshape(x.shape)
        return bool(with_end[-1] > 0)

    def round_with(self, rounding: Rounding) -> None:
        """Nothing is rounded here."""

    def wait_with(self, threads: int) -> None:
        """Nothing is recorded here."""

    def fold(self, nodes: F32, folding: Folding, out: F32) -> None:
        self._send(nodes.tobytes(), range(self.size))
        rows: list[F32] = []
        for rank, count in enumerate(folding.counts):
            if rank == self._rank:
                rows += list(nodes)
            else:
                rows += list(_floats(self._receive(rank), count * out.size).reshape(count, -1).copy())
        for into, other in folding.steps:
            rows[into] += rows[other]
        out[...] = rows[0]

    def broadcast(self, x: F32) -> None:
        if self._rank == HEAD:
            self._send(x.tobytes(), range(self.size))
        else:
            x[...] = _floats(self._receive(HEAD), x.size).reshape(x.shape)

    def scatter(self, parts: Sequence[F32], out: F32) -> None:
        if self._rank == HEAD:
            for rank in range(1, self.size):
                self._send(parts[rank].tobytes(), [rank])
        else:
            out[...] = _floats(self._receive(HEAD), out.size).reshape(out.shape)

    def gather(self, x: F32) -> list[F32]:
        if self._rank != HEAD:
            self._send(x.tobytes(), [HEAD])
            return []
        others = [np.frombuffer(self._receive(rank), np.float32) for rank in range(1, self.size)]
        return [x.ravel().copy(), *others]

    def announce(self, message: bytes) -> bytes:
        if self._rank != HEAD:
            return self._receive(HEAD)
        if len(message) > MOST_MESSAGE_BYTES:
            raise UsageError(f"a message of {len(message)} bytes; at most {MOST_MESSAGE_BYTES} can be announced")
        self._send(message, range(self.size))
        return message

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            for way in self._ways[self._rank]:
                way.put(None)

    def _send(self, message: bytes, ranks: Sequence[int]) -> None:
        if self._is_closed:
            raise LostPeerError(f"rank {self._rank} has left the group")
        for rank in ranks:
            if rank != self._rank:
                self._ways[self._rank][rank].put(message)

    def _receive(self, rank: int) -> bytes:
        try:
            message = self._ways[rank][self._rank].get(timeout=_PATIENCE_S)
        except Empty:
            raise LostPeerError(f"nothing came from rank {rank} for {_PATIENCE_S:.0f} s") from None
        if message is None:
            raise LostPeerError(f"rank {rank} left the group")
        return message


def _floats(part: bytes, count: int) -> F32:
    if len(part) != 4 * count:
        raise UsageError(f"a rank gave {len(part) // 4} numbers where this one has {count}")
    return np.frombuffer(part, np.float32)
