"""Short sums as launches of a recording: what a rank does in a sum, step by step, for a kernel that does it without
Python (`kernels.sum_abi`), and for Python, which goes on where the kernel stopped.

The frames are those of `Short`, and so are the bits: some ranks may sum by the one and some by the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgerun.cluster.bare_calls import forget_errors
from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.short import MOST_BYTES
from edgerun.cluster.units import RankUnits
from edgerun.cluster.wire import CALL_AT, HEADER, MAGIC, VERSION, IsLost, Link
from edgerun.cluster.wire_format import EXACT, HALF, U8, WireFormat
from edgerun.errors import LostPeerError
from edgerun.kernels.memory import address
from edgerun.kernels.program import I64
from edgerun.kernels.sum_abi import (
    ADD,
    CALL,
    FLOATS,
    HALVES,
    LOOK,
    MADE,
    MAY,
    MOVED_AT,
    NOT_BEGUN,
    NUMBER,
    RECEIVE,
    RECEIVED,
    SEND,
    SENT,
    SPANS,
    SPANS_AT,
    STATE_SLOTS,
    STEP_SLOTS,
    STOPPED,
)

_CALL = struct.Struct("<I")
_NS = 1e-9
_NOBODY = -1


class Step(Protocol):
    """What is done at a place of a script."""

    def slots(self) -> tuple[int, ...]:
        """For the kernel."""
        ...

    def do(self, call: int, moved: int) -> None:
        """Now; of its bytes so many went already. LostPeerError."""
        ...


@dataclass(frozen=True, eq=False)
class _Number:
    header: U8

    def slots(self) -> tuple[int, ...]:
        return NUMBER, address(self.header) + CALL_AT

    def do(self, call: int, moved: int) -> None:
        _CALL.pack_into(self.header.data, CALL_AT, call)


@dataclass(frozen=True, eq=False)
class _Add:
    to: F32
    x: F32
    y: F32 | None = None

    def slots(self) -> tuple[int, ...]:
        return ADD, address(self.to), address(self.x), 0 if self.y is None else address(self.y), self.to.size

    def do(self, call: int, moved: int) -> None:
        if self.y is None:
            self.to[...] = self.x
        else:
            np.add(self.x, self.y, self.to)


@dataclass(frozen=True, eq=False)
class _Send:
    link: Link
    slots_of_link: I64
    frame: U8
    is_lost: IsLost

    def slots(self) -> tuple[int, ...]:
        return SEND, address(self.slots_of_link), address(self.frame), self.frame.size

    def do(self, call: int, moved: int) -> None:
        self.link.put(self.frame.data[moved:], self.is_lost)


@dataclass(frozen=True, eq=False)
class _Receive:
    link: Link
    slots_of_link: I64
    frame: U8
    header: U8
    is_lost: IsLost

    def slots(self) -> tuple[int, ...]:
        return RECEIVE, address(self.slots_of_link), address(self.frame), self.frame.size, address(self.header)

    def do(self, call: int, moved: int) -> None:
        self.link.take(self.frame.data, self.header.data, moved, self.is_lost)
        self.link.received_bytes += self.frame.size - moved


@dataclass(frozen=True, eq=False)
class _Halve:
    """to (n,) f16."""

    to: U8
    x: F32

    def slots(self) -> tuple[int, ...]:
        return HALVES, address(self.to), address(self.x), self.x.size

    def do(self, call: int, moved: int) -> None:
        HALF.write(self.x, self.to)


@dataclass(frozen=True, eq=False)
class _Float:
    """x (n,) f16."""

    to: F32
    x: U8

    def slots(self) -> tuple[int, ...]:
        return FLOATS, address(self.to), address(self.x), self.to.size

    def do(self, call: int, moved: int) -> None:
        HALF.read(self.x, self.to)


@dataclass(frozen=True, eq=False)
class _Look:
    flag: F32

    def slots(self) -> tuple[int, ...]:
        return LOOK, address(self.flag)

    def do(self, call: int, moved: int) -> None:
        pass  # whoever finishes a sum looks itself


@dataclass(frozen=True, eq=False)
class SumScript:
    """A sum's steps; slots (steps, STEP_SLOTS) int64: the same for the kernel. flag (1,): whether a rank ends the pass.
    numbers: that it makes."""

    steps: Sequence[Step]
    slots: I64
    flag: F32
    numbers: int


class RecordedSums:
    """One rank's sums that kernels make. state: as of `sum_abi`."""

    def __init__(self, peers: Peers, *, is_star: bool) -> None:
        self._peers = peers
        self._is_star = is_star
        self.state: I64 = np.zeros(STATE_SLOTS, np.int64)
        self.state[STOPPED] = _NOBODY
        self.scripts: dict[tuple[object, ...], SumScript] = {}

    def script(self, parts: Sequence[F32], mine: RankUnits, out: F32) -> SumScript | None:
        """Of the sum that becomes `out`. mine: what is done with this rank's `parts`, each as large. None where it is
        too long, the wire is another, an array is not C-contiguous, or a link cannot be used so."""
        counts, width = mine.folding.counts, out.size + 1
        wire = self._peers.wires[0] if mine.folding == self._peers.in_order else EXACT
        if wire.code not in (EXACT.code, HALF.code) or wire.n_bytes(width * max(counts)) > MOST_BYTES:
            return None
        if any(each.slots is None for each in self._links()):
            return None
        if not all(each.flags.c_contiguous for each in (*parts, out)):
            return None
        key = tuple(address(each) for each in (*parts, out)), out.size, mine
        found = self.scripts.get(key)
        if found is None:
            flat = [each.reshape(-1) for each in parts]
            writer = _Writer(self._peers, mine, width, wire)
            found = self.scripts[key] = writer.script(flat, out.reshape(-1), self._is_star)
        return found

    def begin(self, numbers: int) -> None:
        """Sums of so many numbers may be made by launches from now on; 0: none."""
        peers, state = self._peers, self.state
        if not self.scripts:
            return
        if numbers and not peers.is_patient:
            peers.be_patient(True)
        state[MAY], state[CALL], state[STOPPED] = numbers, peers.call, _NOBODY

    def made(self) -> list[tuple[float, float]]:
        """When each sum that launches made since the last call began and ended, as `perf_counter` says."""
        state = self.state
        state[MAY] = 0
        count = int(state[MADE])
        if not count:
            return []
        state[MADE] = 0
        self._peers.call = int(state[CALL])
        self._count_bytes()
        spans = state[SPANS_AT : SPANS_AT + 2 * min(count, SPANS)].reshape(-1, 2) * _NS
        return [(began, ended) for began, ended in spans.tolist()]

    def stopped(self) -> int | None:
        """At which step a sum stopped the program, NOT_BEGUN where it did not begin; None: none did."""
        at = int(self.state[STOPPED])
        return None if at == _NOBODY else at

    def finish(self, script: SumScript, clock_s: Callable[[], float]) -> bool:
        """What is left of the sum that stopped the program, so that it is made as the others; False: it had not begun.
        LostPeerError."""
        state, at, moved = self.state, int(self.state[STOPPED]), int(self.state[MOVED_AT])
        state[STOPPED] = _NOBODY
        if at == NOT_BEGUN:
            return False
        forget_errors()
        call = int(state[CALL])
        self._peers.call = call
        try:
            for step in script.steps[at:]:
                step.do(call & 0xFFFFFFFF, moved)
                moved = 0
        except LostPeerError as error:
            raise self._peers.explained(error) from error
        if not isinstance(script.steps[at], _Look):
            made = int(state[MADE])
            state[SPANS_AT + 2 * (made % SPANS) + 1] = int(clock_s() / _NS)
            state[MADE] = made + 1
        return True

    def _links(self) -> list[Link]:
        peers = self._peers
        ranks = [HEAD] if self._is_star and peers.rank != HEAD else peers.others
        return [peers.links[rank] for rank in ranks]

    def _count_bytes(self) -> None:
        for link in self._links():
            assert link.slots is not None  # script
            link.sent_bytes += int(link.slots[SENT])
            link.received_bytes += int(link.slots[RECEIVED])
            link.slots[[SENT, RECEIVED]] = 0


class _Writer:
    """Of the script of one kind of sum: this rank's frame, those of the others, and what they begin with."""

    def __init__(self, peers: Peers, mine: RankUnits, width: int, wire: WireFormat) -> None:
        self._peers, self._mine, self._width, self._wire = peers, mine, width, wire
        self._headers: dict[int, U8] = {}  # by the size of the body: what frames of this call begin with
        counts = mine.folding.counts
        self._frames = [self._frame(wire.n_bytes(width * count)) for count in counts]
        self._down = self._frame(wire.n_bytes(width))  # what a star's head hands out
        # Each rank's partial sums, (count * width,), and a star's sum: of exact numbers they are the frames themselves.
        self._nodes = [self._numbers(frame, width * count) for frame, count in zip(self._frames, counts, strict=True)]
        self._sum = self._numbers(self._down, width)

    def script(self, parts: Sequence[F32], out: F32, is_star: bool) -> SumScript:
        """The steps of the star or the mesh."""
        rank, n = self._peers.rank, out.size
        own, rows = self._own(parts, n), [row for nodes in self._nodes for row in nodes.reshape(-1, self._width)]
        frame, flag = self._frames[rank], self._sum[n:]
        if is_star and rank != HEAD:
            steps = [*own, *self._written(frame, self._nodes[rank]), self._send(HEAD, frame)]
            steps += [self._receive(HEAD, self._down), *self._read(self._sum, self._down), _Add(out, self._sum[:n])]
        else:
            receives: list[Step] = []
            for each in self._peers.in_turn:
                there = self._frames[each]
                receives += [self._receive(each, there), *self._read(self._nodes[each], there)]
            *adds, (into, last) = self._mine.folding.steps
            added: list[Step] = [_Add(rows[to], rows[to], rows[other]) for to, other in adds]
            if is_star:
                added += [_Add(self._sum, rows[into], rows[last]), *self._written(self._down, self._sum)]
                sends = [self._send(each, self._down) for each in self._peers.in_turn]
                steps = [*receives, *own, *added, *sends, *self._read(self._sum, self._down), _Add(out, self._sum[:n])]
            else:
                flag = rows[0][n:]
                added += [_Add(out, rows[into][:n], rows[last][:n]), _Add(flag, rows[into][n:], rows[last][n:])]
                sends = [self._send(each, frame) for each in self._peers.in_turn]
                written = [*self._written(frame, self._nodes[rank]), *self._read(self._nodes[rank], frame)]
                steps = [*own, *written, *sends, *receives, *added]
        numbers = [self._frames[rank][: HEADER.size], self._down[: HEADER.size], *self._headers.values()]
        steps = [*(_Number(each) for each in numbers), *steps, _Look(flag)]
        slots = np.zeros((len(steps), STEP_SLOTS), np.int64)
        for row, step in zip(slots, steps, strict=True):
            row[: len(step.slots())] = step.slots()
        return SumScript(steps, slots, flag, n)

    def _own(self, parts: Sequence[F32], n: int) -> list[Step]:
        """This rank's partial sums, into its frame. What follows each says that it goes on."""
        nodes = self._nodes[self._peers.rank].reshape(-1, self._width)
        zeros = np.zeros(self._width, np.float32)
        steps: list[Step] = [_Add(parts[into], parts[into], parts[other]) for into, other in self._mine.steps]
        for node, (into, last) in zip(nodes, self._mine.last, strict=False):
            steps.append(_Add(node[:n], parts[into], None if last is None else parts[last]))
            steps.append(_Add(node[n:], zeros[n:]))
        return steps if self._mine.last else [_Add(nodes[0], zeros)]

    def _written(self, frame: U8, numbers: F32) -> list[Step]:
        """Numbers into a frame."""
        return [] if self._wire.is_exact else [_Halve(frame[HEADER.size :], numbers)]

    def _read(self, numbers: F32, frame: U8) -> list[Step]:
        """Numbers out of a frame."""
        return [] if self._wire.is_exact else [_Float(numbers, frame[HEADER.size :])]

    def _send(self, rank: int, frame: U8) -> Step:
        link = self._peers.links[rank]
        assert link.slots is not None  # RecordedSums.script
        return _Send(link, link.slots, frame, self._peers.is_lost)

    def _receive(self, rank: int, frame: U8) -> Step:
        link, size = self._peers.links[rank], frame.size
        assert link.slots is not None  # RecordedSums.script
        header = self._headers.get(size)
        if header is None:
            header = self._headers[size] = self._frame(size - HEADER.size)[: HEADER.size].copy()
        return _Receive(link, link.slots, frame, header, self._peers.is_lost)

    def _frame(self, n_bytes: int) -> U8:
        """A header, whose call is still to be written, and a body. It begins where its numbers lie at a line."""
        memory = np.zeros(HEADER.size + n_bytes + 128, np.uint8)
        start = -(address(memory) + HEADER.size) % 64
        frame = memory[start : start + HEADER.size + n_bytes]
        HEADER.pack_into(frame.data, 0, MAGIC, VERSION, self._wire.code, n_bytes, 0)
        return frame

    def _numbers(self, frame: U8, count: int) -> F32:
        return frame[HEADER.size :].view(np.float32) if self._wire.is_exact else np.zeros(count, np.float32)
