"""Sums that a recording's launches make: the bits and the counts of those that Python makes, and Python goes on
wherever one of them stops."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgerun.cluster.bare_calls import bare_calls
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.lockstep import Lockstep, PassEnded
from edgerun.cluster.peers import Peers
from edgerun.cluster.tls import secured
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import HEADER, MAGIC, VERSION, Link, patience
from edgerun.cluster.wire_format import EXACT
from edgerun.errors import LostPeerError
from edgerun.models import Batch, Stretch
from edgerun.models.reductions import Reduction
from tests.cluster.groups import linked_group
from tests.cluster.homes import acquainted
from tests.cluster.in_threads import one_thread, resident, together
from tests.models.instances import INSTANCES, open_instance, tokens_of

N = 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where instances and their shards are kept."""
    return tmp_path_factory.mktemp("shards")


@pytest.mark.parametrize(
    ("name", "parts", "way", "in_units", "wire"),
    [
        ("llama-Q4_0", [1, 1], "star", False, "f16"),
        ("llama-Q4_0", [4, 2, 1], "star", True, "f32"),
        ("llama-Q4_0", [1, 1, 1], "mesh", False, "f16"),
        ("llama-Q4_0", [1, 1, 1, 1], "mesh", True, "f32"),
        ("olmoe", [2, 1, 1], "mesh", False, "f32"),
    ],
    ids=str,
)
def test_launches_make_the_sums_of_python(name, parts, way, in_units, wire, directory):
    """Of one row, of two, and of three that a recording of four computes: logits to the bit, and what is counted."""
    gguf, spec = open_instance(name, directory)
    ids = tokens_of(INSTANCES[name])
    found = []
    with gguf:
        for by_launches in (True, False):
            group = linked_group(len(parts), way, wire, wait_s=60)
            made = 0
            for each in group:
                if not by_launches:
                    each.recorded = None
            with together(gguf, spec, parts, directory, resident(one_thread), group, in_units=in_units) as here:
                decoder, lockstep, told = here.decoder, here.conductor.lockstep, []
                decoder.watch(told.append)
                caches = [decoder.new_cache(100) for _ in range(3)]
                logits = [decoder.forward(ids, cache, logits="all") for cache in caches]
                for rows in (1, 1, 1, 2, 2, 3, 3, 1):
                    stretches = tuple(Stretch(cache, [rows + 3], "last") for cache in caches[:rows])
                    logits += decoder.step(Batch(stretches))
                sums = group[0].recorded
                made = sums is not None and len(sums.scripts)
            assert not here.errors
            assert bool(made) == by_launches
            sums = [(span.name, span.n_bytes) for span in told if span.lane == "cluster"]
            assert all(0 < span.end_s - span.begin_s < 60 for span in told)
            sent = [each.sent_bytes for each in group]
            found.append((logits, lockstep.reductions, lockstep.reduced_bytes, sent, sums))
            assert 0 < lockstep.waited_s < 60
    assert all(np.array_equal(one, other) for one, other in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1:] == found[1][1:]


class _Rank:
    """One rank whose sums of N numbers are launches, `sums` of them a pass."""

    def __init__(self, collective: LinkedCollective, sums: int = 1) -> None:
        self.kernels = one_thread()
        self.lockstep = Lockstep(collective, 8, _NoStore())
        self.x = np.zeros((1, N), np.float32)
        recording = self.kernels.recording
        assert recording is not None
        self._launches, self._sums = recording, sums
        self.stopped = 0
        with recording.record() as recorder:
            self.recorded = [self.lockstep.recorded([self.x], None, self.x) for _ in range(sums)]
            assert all(each.lay_out(recording) for each in self.recorded)
        self.program = recorder.program()

    def run(self, x: np.ndarray) -> np.ndarray:
        """A pass: x becomes the sum, several times over."""

        def compute() -> np.ndarray:
            at = 0
            while at < self._sums:
                at = self._launches.run_program(self.program, at)
                if self.recorded[at - 1].is_left():
                    self.stopped += 1
                    assert self.recorded[at - 1].finish()
            return np.zeros((0, 8), np.float32)

        self.x[...] = x
        self.lockstep.run([Reduction(N)] * self._sums, compute)
        return self.x.copy()


class _NoStore:
    def statistics(self) -> dict[str, float]:
        return {}


@pytest.fixture
def rank() -> Iterator[tuple[_Rank, socket.socket]]:
    """The first rank of a mesh of two, and the other end of its link."""
    ours, theirs = socket.socketpair()
    group = LinkedCollective(Peers(0, 2, {1: Link(ours, 1)}, EXACT, patience(5)), Way("mesh"))
    made = _Rank(group)
    with contextlib.closing(made.kernels), theirs:
        yield made, theirs
        group.close()


def _frame(x: np.ndarray, call: int, ends: float = 0.0) -> bytes:
    body = np.append(x, np.float32(ends)).astype(np.float32).tobytes()
    return HEADER.pack(MAGIC, VERSION, EXACT.code, len(body), call) + body


X, Y = np.arange(N, dtype=np.float32), np.linspace(-1, 1, N, dtype=np.float32)


@pytest.mark.parametrize(
    ("pieces", "stops"),
    [
        ([(0.0, 0, 200)], 0),  # all at once
        ([(0.0, 0, 7), (0.01, 7, 60), (0.01, 60, 200)], 0),  # short reads
        ([(0.15, 0, 200)], 1),  # longer than a read waits
        ([(0.0, 0, 50), (0.15, 50, 200)], 1),  # the same, within a frame
        ([(0.15, 0, 5), (0.15, 5, 200)], 1),  # and within its header
    ],
    ids=str,
)
def test_python_goes_on_where_a_launch_stops(rank, pieces, stops):
    here, other = rank

    def answer(call: int) -> None:
        frame = _frame(Y, call)
        for wait_s, low, high in pieces:
            time.sleep(wait_s)
            other.sendall(frame[low:high])

    for call in (1, 2):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(answer, call)
            np.testing.assert_array_equal(here.run(X)[0], X + Y)
        assert other.recv(1000) == _frame(X, call)
        assert here.stopped == stops * call
    assert (here.lockstep.reductions, here.lockstep.reduced_bytes) == (2, 2 * 4 * (N + 1))
    (link,) = here.lockstep.collective.peers.links.values()
    assert link.sent_bytes == link.received_bytes == 2 * len(_frame(X, 1))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_frame(Y, 7), "call 7, where one of kind 1, 164 bytes, call 1"),
        (_frame(Y[1:], 1), "160 bytes, call 1, where one of kind 1, 164 bytes"),
        (b"x" * 200, "no frame of this version"),
        (_frame(Y, 1)[:60], "left the group"),  # and then it is gone
        (b"", "left the group"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_answer_is_python_s_to_judge(rank, answer, says):
    here, other = rank
    other.sendall(answer)
    if says.startswith("left"):
        other.shutdown(socket.SHUT_WR)
    with pytest.raises(LostPeerError, match=says):
        here.run(X)


def test_a_link_that_is_closed_meanwhile_ends_the_sum(rank):
    here, _ = rank
    (link,) = here.lockstep.collective.peers.links.values()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: (time.sleep(0.05), link.close()))
        with pytest.raises(LostPeerError):
            here.run(X)
    with pytest.raises(LostPeerError, match="closed"):
        here.run(X)


def test_nobody_is_waited_for_who_is_known_to_be_lost():
    ours, theirs = socket.socketpair()
    lost = ["", "", "its cable is out"]
    group = LinkedCollective(Peers(0, 2, {1: Link(ours, 1)}, EXACT, lambda: lost.pop(0)), Way("star"))
    here = _Rank(group)
    with contextlib.closing(here.kernels), theirs, pytest.raises(LostPeerError, match="cable"):
        lost.append("its cable is out")
        here.run(X)
    group.close()


def test_helpers_may_sleep_while_a_sum_comes_from_far():
    def is_recorded(threads: int, hop_s: float) -> bool:
        ours, theirs = socket.socketpair()
        group = LinkedCollective(Peers(0, 2, {1: Link(ours, 1)}, EXACT, str), Way("mesh"), hop_s)
        group.wait_with(threads)
        with theirs, contextlib.closing(group):
            return group.recorded is not None

    assert is_recorded(1, 5e-3) and is_recorded(2, 5e-4) and not is_recorded(2, 5e-3)


def test_whoever_cannot_go_on_says_so_in_a_sum(rank):
    """The pass ends after it, on all ranks, and the next one begins."""
    here, other = rank
    answers = [_frame(Y, 1, ends=1.0), HEADER.pack(MAGIC, VERSION, EXACT.code, 4, 2) + bytes(4), _frame(Y, 3)]
    for each in answers:
        other.sendall(each)
    with pytest.raises(PassEnded):
        here.run(X)
    other.sendall(HEADER.pack(MAGIC, VERSION, EXACT.code, 24, 4) + bytes(24))  # its times, with its logits
    np.testing.assert_array_equal(here.run(X)[0], X + Y)


def test_the_pass_of_other_rows_is_not_begun(rank):
    here, other = rank
    sums = here.lockstep.collective.recorded
    sums.begin(2 * N)
    assert here._launches.run_program(here.program) == 1
    assert here.recorded[0].is_left() and not here.recorded[0].finish()
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(1)


@pytest.mark.parametrize(("way", "size"), [("star", 3), ("mesh", 3)])
def test_sums_over_encrypted_links(tmp_path, way, size):
    """Whoever is early is read ahead of, and a message that lies in OpenSSL's buffer is found there."""
    group = _encrypted_group(tmp_path, size, way)
    assert all(each.recorded is not None for each in group)
    ranks = [_Rank(each, sums=4) for each in group]

    def act(here: _Rank) -> tuple[np.ndarray, bytes, np.ndarray]:
        each = here.lockstep.collective
        for _ in range(3):
            x = here.run(X + each.rank)[0]
            said = each.announce(b"next" if each.rank == 0 else b"")
            long = np.full(30_000, 1 + each.rank, np.float32)
            each.all_reduce(long)
        return x, said, long

    with ThreadPoolExecutor(size) as threads:
        results = list(threads.map(act, ranks))
    expected = [X + rank for rank in range(size)]
    for _ in range(4):
        total = expected[0]
        for each in expected[1:]:
            total = total + each
        expected = [total] * size
    for x, said, long in results:
        np.testing.assert_array_equal(x, expected[0])
        assert said == b"next" and (long == size * (size + 1) / 2).all()
    for here in ranks:
        assert here.lockstep.reductions == 12
        here.kernels.close()
    group[1].close()
    with pytest.raises(LostPeerError):
        ranks[0].run(X)


def _encrypted_group(folder, size: int, way: str) -> Sequence[LinkedCollective]:
    homes = acquainted(folder, *(f"rank{rank}" for rank in range(size)))
    links: list[dict[int, Link]] = [{} for _ in range(size)]
    for low in range(size):
        for high in range(low + 1, size):
            ends = socket.socketpair()

            def shake(rank: int, ends=ends, low=low, high=high):
                home, end = homes[rank], ends[rank == high]
                return secured(end, home.identity, home.roster, server=rank == high)[0]

            with ThreadPoolExecutor(2) as threads:
                one, other = threads.map(shake, (low, high))
            assert bare_calls(one) is not None, "this Python's OpenSSL cannot be called: see bare_calls"
            links[low][high], links[high][low] = Link(one, high), Link(other, low)
    return [LinkedCollective(Peers(rank, size, links[rank], EXACT, patience(20)), Way(way)) for rank in range(size)]
