"""A rank's links to the others, its buffers, and the exchanges that ways to sum are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.units import in_order
from edgerun.cluster.wire import BYTES, Frame, IsLost, Link, exchange
from edgerun.cluster.wire_format import WireFormat
from edgerun.errors import LostPeerError, UsageError
from edgerun.kernels.eighths import PlainRounding, Rounding

FEW_NUMBERS = 1 << 14  # of a token's sums, where latency counts; a prompt's have more, and bytes count


def is_long(count: int) -> bool:
    """Whether a sum has so many numbers that bytes count."""
    return count > FEW_NUMBERS


class Peers:
    """This rank's links and buffers, and the exchanges that ways are made of."""

    def __init__(self, rank: int, size: int, links: Mapping[int, Link], wire: WireFormat, is_lost: IsLost) -> None:
        needed = set(range(size)) if rank == HEAD else {HEAD}
        if not 0 <= rank < size or not needed - {rank} <= set(links) <= set(range(size)) - {rank}:
            raise UsageError(f"rank {rank} of {size} cannot have links to the ranks {sorted(links)}")
        self.rank = rank
        self.size = size
        self.links = dict(links)
        self.wire = wire  # of the sum that is being made
        self.wires = wire, wire  # of sums of few numbers, and of many
        self.others = [other for other in range(size) if other != rank]
        # Each rank begins with the one after it: no cable has all frames at once.
        self.in_turn = [(rank + step) % size for step in range(1, size)]
        self.is_lost = is_lost
        self.call = 0  # what the group does together, counted
        self.is_patient = False  # whether links wait: `Link.be_patient`
        self._frames: dict[int, Frame] = {}
        self._scratch = np.empty(0, np.float32)
        self.in_order = in_order(size)
        self.rounding: Rounding = PlainRounding()

    def next_call(self) -> None:
        """The group does something together. All exchanges of it carry its number."""
        self.call += 1

    def next_sum(self, count: int) -> None:
        """The same for a sum of so many numbers."""
        self.next_call()
        self.wire = self.wires[is_long(count)]

    def be_patient(self, patient: bool) -> None:
        """Of all links."""
        for link in self.links.values():
            link.be_patient(patient)
        self.is_patient = patient

    def write(self, x: F32, wire: WireFormat, slot: int = 0) -> Frame:
        """A frame with the numbers of `x` (flat); there are as many buffers as slots."""
        frame = self._frames.setdefault(slot, Frame())
        wire.write(x, frame.begin(wire.code, self.call, wire.n_bytes(x.size)))
        return frame

    def make(self, count: int, wire: WireFormat, fill: Callable[[F32], None], slot: int = 0) -> Frame:
        """A frame with so many exact numbers, which `fill` writes."""
        frame = self._frames.setdefault(slot, Frame())
        fill(frame.begin(wire.code, self.call, wire.n_bytes(count)).view(np.float32))
        return frame

    def write_again(self, rank: int) -> Frame:
        """A frame with the very bytes that came from a rank: written anew, numbers could be others."""
        body = self.links[rank].body
        frame = self._frames.setdefault(0, Frame())
        frame.begin(self.wire.code, self.call, body.size)[...] = body
        return frame

    def write_bytes(self, message: bytes) -> Frame:
        """A frame with a message."""
        frame = self._frames.setdefault(0, Frame())
        frame.begin(BYTES, self.call, len(message))[...] = np.frombuffer(message, np.uint8)
        return frame

    def swap(self, sends: Mapping[int, Frame], receives: Mapping[int, int], wire: WireFormat) -> None:
        """Send frames to ranks and receive as many numbers from ranks as `receives` says."""
        for rank, count in receives.items():
            self.links[rank].expect(wire.code, self.call, wire.n_bytes(count), exactly=True)
        self.trade(((rank, frame.whole) for rank, frame in sends.items()), receives)

    def receive_up_to(self, ranks: Iterable[int], code: int, most_bytes: int) -> None:
        """One frame from each of the ranks, of whatever length."""
        ranks = list(ranks)
        for rank in ranks:
            self.links[rank].expect(code, self.call, most_bytes, exactly=False)
        self.trade((), ranks)

    def trade(self, sends: Iterable[tuple[int, memoryview]], receives: Iterable[int]) -> None:
        """Send frames to ranks, each as soon as it is there, and receive from ranks what their links expect."""
        if self.is_patient:
            self.be_patient(False)
        sending = ((self.links[rank], frame) for rank, frame in sends)
        try:
            exchange(sending, [self.links[rank] for rank in receives], self.is_lost)
        except LostPeerError as error:
            raise self.explained(error) from error

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

    def explained(self, error: LostPeerError) -> LostPeerError:
        """Links of a group that is over are closed by another thread, which knows why."""
        return LostPeerError(self.is_lost() or str(error))

    def scratch(self, count: int) -> F32:
        if count > self._scratch.size:
            self._scratch = np.empty(count, np.float32)
        return self._scratch[:count]
