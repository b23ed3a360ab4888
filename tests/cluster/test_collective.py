"""What every way of working together must do, whatever carries the numbers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from edgerun.cluster.collective import MOST_MESSAGE_BYTES, Collective
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.local import local_group
from edgerun.cluster.peers import FEW_NUMBERS, Peers
from edgerun.cluster.units import edges_of, rank_units
from edgerun.cluster.ways import WAY_NAMES, Way
from edgerun.cluster.wire import HEADER, MAGIC, VERSION, Link, patience
from edgerun.cluster.wire_format import EXACT, WIRE_NAMES, wire_format
from edgerun.errors import LostPeerError, UsageError
from edgerun.kernels import load_kernels
from tests.cluster.groups import linked_group, on_all

Make = Callable[[int], Sequence[Collective]]
IN_ORDER: dict[str, Make] = {
    "local": local_group,
    "star": lambda size: linked_group(size, "star"),
    "mesh": lambda size: linked_group(size, "mesh"),
}
OF_THEIR_OWN: dict[str, Make] = {
    f"{way}-{wire}": partial(linked_group, way=way, wire=wire)
    for way in WAY_NAMES
    for wire in WIRE_NAMES
    if (way, wire) not in (("star", "f32"), ("mesh", "f32"))
}
WAYS = {**IN_ORDER, **OF_THEIR_OWN}


@pytest.fixture(params=IN_ORDER)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Groups, closed at the end."""
    made: list[Sequence[Collective]] = []

    def build(size: int) -> Sequence[Collective]:
        made.append(IN_ORDER[request.param](size))
        return made[-1]

    yield build
    for group in made:
        for each in group:
            each.close()


SHAPES = [(1, 2048), (2, 77), (3,), (5, FEW_NUMBERS // 4)]


def _numbers(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """Of very different sizes, so that another order of summation gives other bits."""
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", WAYS)
def test_sums_are_the_same_on_every_rank(name: str, size: int) -> None:
    """Those of ascending ranks, to the bit, where a way promises it; for one row, for many, for an odd number."""
    group = WAYS[name](size)

    def act(each: Collective) -> list[np.ndarray]:
        sums = []
        for shape in SHAPES:
            for _ in range(2):  # buffers are used again
                x = _numbers(each.rank, shape)
                each.all_reduce(x)
            sums.append(x)
        return sums

    for i, got in enumerate(zip(*on_all(group, act), strict=True)):
        parts = [_numbers(rank, SHAPES[i]) for rank in range(size)]
        expected = parts[0]
        for part in parts[1:]:
            expected = expected + part
        for each in got:
            np.testing.assert_array_equal(each, got[0])
        if name in IN_ORDER or size == 1:
            np.testing.assert_array_equal(got[0], expected)
        else:
            largest = sum(np.abs(part) for part in parts).max()
            tolerance = {"f32": 1e-6, "f16": 2e-3, "q8": 2e-2}[name.split("-")[1]]
            np.testing.assert_allclose(got[0], expected, rtol=0, atol=tolerance * largest)
    for each in group:
        each.close()


def test_long_sums_may_travel_otherwise_than_short_ones() -> None:
    group = linked_group(3, "mesh")
    for each in group:
        each.peers.wires = EXACT, wire_format("q8")
    for n, off in ((FEW_NUMBERS, 0.0), (FEW_NUMBERS + 32, 2e-2)):
        sums = on_all(group, lambda each, n=n: _summed(each, n))
        expected = sum(_numbers(rank, (n,)) for rank in range(3))
        largest = sum(np.abs(_numbers(rank, (n,))) for rank in range(3)).max()
        assert (np.abs(sums[0] - expected).max() > 0) == (off > 0)
        np.testing.assert_allclose(sums[0], expected, rtol=0, atol=off * largest)
        for each in sums:
            np.testing.assert_array_equal(each, sums[0])


def test_long_rounded_sums_are_the_same_by_star_and_mesh_and_say_who_ends() -> None:
    """With kernels that round, or numpy; of whole blocks and of odd numbers. Sums that no rank ends go on."""
    kernels = load_kernels("auto", threads=1)
    for n in (FEW_NUMBERS + 1, 3 * FEW_NUMBERS):
        found = []
        for way, rounding in (("star", None), ("mesh", None), ("mesh", kernels)):
            group = linked_group(3, way, "q8")
            for each in group if rounding is not None else ():
                each.round_with(kernels)
            for ending in (None, 0, 2):
                told = on_all(group, lambda each, n=n, ending=ending: _reduced(each, n, ending == each.rank))
                assert [ends for _, ends in told] == [ending is not None] * 3
                found += [x for x, _ in told]
        for x in found[1:]:
            np.testing.assert_array_equal(x, found[0])
    kernels.close()


def _reduced(each: Collective, n: int, ends: bool) -> tuple[np.ndarray, bool]:
    x = _numbers(each.rank, (n,))
    return x, each.reduce_long(x, ends)


def _summed(each: Collective, n: int) -> np.ndarray:
    x = _numbers(each.rank, (n,))
    each.all_reduce(x)
    return x


@pytest.mark.parametrize("parts", [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [4, 2, 1], [0, 1, 2]], ids=str)
def test_units_make_the_same_sum_whoever_has_them(make: Make, parts: list[int]) -> None:
    """To the bit the sum along the tree of halves; of few numbers and of many."""
    for count in (8, 11):
        edges = edges_of(count, parts)
        for n in (2049, 3 * FEW_NUMBERS + 5):
            units = [_numbers(unit, (n,)) for unit in range(count)]

            def act(each: Collective, edges=edges, units=units, n=n) -> np.ndarray:
                mine = rank_units(edges, each.rank)
                own = [unit.copy() for unit in units[edges[each.rank] : edges[each.rank + 1]]]
                for into, other in mine.steps:
                    own[into] += own[other]
                pairs = [(own[into], 0 if last is None else own[last]) for into, last in mine.last]
                nodes = np.array([into + last for into, last in pairs] or [np.zeros(n, np.float32)])
                out = np.empty(n, np.float32)
                for _ in range(2):  # buffers are used again
                    each.fold(nodes.copy(), mine.folding, out)
                return out

            for got in on_all(make(len(parts)), act):
                np.testing.assert_array_equal(got, _halves(units))


def _halves(units: list[np.ndarray]) -> np.ndarray:
    if len(units) == 1:
        return units[0]
    middle = (len(units) + 1) // 2
    return _halves(units[:middle]) + _halves(units[middle:])


def test_the_head_gives_and_gathers(make: Make) -> None:
    def act(group: Collective) -> tuple[np.ndarray, bytes, list[np.ndarray]]:
        x = _numbers(group.rank, (2, 5))
        group.broadcast(x)
        said = group.announce(b"step 1" if group.rank == 0 else b"")
        gathered = group.gather(np.full(group.rank + 1, group.rank, np.float32))
        return x, said, [part.copy() for part in gathered]

    results = on_all(make(3), act)
    for x, said, _ in results:
        np.testing.assert_array_equal(x, _numbers(0, (2, 5)))
        assert said == b"step 1"
    assert [part.tolist() for part in results[0][2]] == [[0], [1, 1], [2, 2, 2]]
    assert results[1][2] == results[2][2] == []


def test_who_leaves_is_missed(make: Make) -> None:
    def act(group: Collective) -> str:
        if group.rank == 2:
            group.close()
            group.close()
            return ""
        with pytest.raises(LostPeerError) as caught:
            for _ in range(2):
                group.all_reduce(np.zeros(4, np.float32))
        group.close()  # so that who waits for this one is not left waiting
        return str(caught.value)

    assert any("rank 2" in message for message in on_all(make(3), act))


def test_what_makes_no_sense_is_refused(make: Make) -> None:
    group = make(2)
    with pytest.raises(UsageError, match="at most"):
        group[0].announce(bytes(MOST_MESSAGE_BYTES + 1))
    with pytest.raises(UsageError, match="0 ranks"):
        local_group(0)
    with pytest.raises(UsageError, match="star, mesh, ring, tree"):
        Way("butterfly")


@pytest.mark.parametrize("name", WIRE_NAMES)
def test_what_is_written_is_read(name: str) -> None:
    wire = wire_format(name)
    for count in (1, 31, 32, 33, 100):
        x = _numbers(1, (count,))
        x[0] = 0
        data, read = np.empty(wire.n_bytes(count), np.uint8), np.empty(count, np.float32)
        wire.write(x, data)
        wire.read(data, read)
        step = {"f32": 0, "f16": np.abs(x) / 2048 + 1e-7, "q8": np.abs(x).max() / 254 * 1.001}[name]
        assert (np.abs(read - x) <= step).all()
        assert wire.is_exact == (name == "f32")
    x = np.array([np.inf, np.nan, 1e-44, 1e38], np.float32)
    data, read = np.empty(wire.n_bytes(4), np.uint8), np.empty(4, np.float32)
    wire.write(x, data)
    with np.errstate(all="ignore"):
        wire.read(data, read)
    assert not np.isfinite(read[:2]).any()  # what went wrong is not hidden
    with pytest.raises(UsageError, match="f32, f16, q8"):
        wire_format("bf16")


@pytest.mark.parametrize("way", ["star", "mesh"])
def test_a_short_sum_waits_for_who_is_late(way: str) -> None:
    """Longer than a read waits before it looks whether anybody was lost."""

    def act(each: Collective) -> np.ndarray:
        x = np.full(8, 1 + each.rank, np.float32)
        if each.rank == 1:
            time.sleep(0.25)
        each.all_reduce(x)
        return x

    for got in on_all(linked_group(3, way), act):
        np.testing.assert_array_equal(got, np.full(8, 6, np.float32))


def test_a_short_frame_may_come_in_pieces_but_only_its_own() -> None:
    ends = socket.socketpair()
    link = Link(ends[0], 1)
    peers = Peers(0, 2, {1: link}, wire_format("f32"), patience(5))
    group = LinkedCollective(peers, Way("mesh"))

    def answer(call: int, n_bytes: int) -> None:
        body = np.arange(n_bytes // 4, dtype=np.float32).tobytes()
        frame = HEADER.pack(MAGIC, VERSION, 1, n_bytes, call) + body
        for low in range(0, len(frame), 7):
            ends[1].sendall(frame[low : low + 7])
            time.sleep(0.001)

    for call in (1, 2):
        x = np.ones(5, np.float32)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(answer, call, 20)
            group.all_reduce(x)
        np.testing.assert_array_equal(x, 1 + np.arange(5, dtype=np.float32))
    with ThreadPoolExecutor(1) as thread:
        thread.submit(answer, 7, 20)
        with pytest.raises(LostPeerError, match="call 7, where one of kind 1, 20 bytes, call 3"):
            group.all_reduce(np.ones(5, np.float32))
    group.close()
    with pytest.raises(LostPeerError, match="closed"):
        group.all_reduce(np.ones(5, np.float32))
    ends[1].close()
