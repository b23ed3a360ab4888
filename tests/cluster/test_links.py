"""The choice of a way by what was measured, and the measuring."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgerun.cluster.cables import Cable, Cables, is_still
from edgerun.cluster.head import Head, Shard, connect
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.links import Links, choose_way, choose_wire, predict_s
from edgerun.cluster.shards import make_offer
from edgerun.cluster.ways import FOLDING, WAY_NAMES
from edgerun.cluster.wire_format import EXACT, wire_format
from edgerun.errors import LostPeerError
from edgerun.events import ignore
from tests.cluster.homes import acquainted
from tests.cluster.lab import Lab, can_emulate, lab, line_with, running

Three = tuple[Lab, Head, list["subprocess.Popen[str]"]]

WIRED = Links(0.0003, 8e-9, 2e-5, True)
AIR = Links(0.002, 4e-8, 2e-5, False)


def test_wires_want_a_mesh_and_shared_air_a_star() -> None:
    assert choose_way(WIRED, 4, 8196) == "mesh"
    assert choose_wire(Links(1e-4, 8e-9, 1e-5, True)).code == wire_format("q8").code  # a gigabit
    assert choose_wire(Links(1e-4, 8e-11, 1e-5, True)) is EXACT  # a hundred
    assert choose_way(AIR, 8, 8196) == "star"
    assert choose_way(Links(1e-6, 1e-7, 1e-6, True), 8, 1 << 24) == "ring"  # only bytes count
    for way in WAY_NAMES:
        assert predict_s(way, WIRED, 1, 8196) == 0
        assert predict_s(way, WIRED, 4, 8196) > predict_s(way, WIRED, 2, 8196) > 0
    assert predict_s("star", WIRED, 2, 1000) == pytest.approx(2 * 0.0003 + 2 * 8e-6)
    assert predict_s("mesh", AIR, 3, 1000) == pytest.approx(0.002 + 6 * 4e-5 + 2e-5)


def test_what_was_measured_holds_for_a_day_where_nothing_seems_changed(tmp_path: Path) -> None:
    now = time.time()
    cable = Cable("10.0.0.2", now - 3600, 0.002, 8e-8, False)
    as_then = 0.0026  # for 32 KiB
    assert is_still(cable, "10.0.0.2", 0.001, as_then, now) and is_still(cable, "10.0.0.2", 0.004, as_then, now)
    assert not is_still(cable, "10.0.0.3", 0.002, as_then, now)  # another network
    for hop_s in (0.0002, 0.006):  # a cable now; worse air
        assert not is_still(cable, "10.0.0.2", hop_s, as_then, now)
    for probe_s in (0.0003, 0.01):  # as quick to answer, but a gigabit now, or 25 megabits
        assert not is_still(cable, "10.0.0.2", 0.002, probe_s, now)
    for later_s in (24 * 3600, -2 * 3600):  # a clock that was set back does not make it last
        assert not is_still(cable, "10.0.0.2", 0.002, as_then, now + later_s)
    cables = Cables(tmp_path / "cables")
    assert cables.find("attic", "10.0.0.2", 0.002, as_then) is None
    cables.keep("attic", cable)
    assert cables.find("attic", "10.0.0.2", 0.002, as_then) == cable
    assert (
        cables.find("attic", "10.0.0.2", 0.02, as_then) is None
        and cables.find("shed", "10.0.0.2", 0.002, as_then) is None
    )
    cables.clear()
    assert cables.find("attic", "10.0.0.2", 0.002, as_then) is None
    (tmp_path / "cables" / "attic").write_bytes(b"nonsense")
    assert cables.find("attic", "10.0.0.2", 0.002, as_then) is None


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    """A head in this process and two workers, 5 ms and 100 Mb/s away where that can be emulated."""
    folder = tmp_path_factory.mktemp("lab")
    names = ["desk", "attic", "shed"]
    with lab(folder, 3, delay_s=0.005, bits_per_s=1e8) as here:
        homes = acquainted(folder, *names)
        addresses, processes = [], []
        for device, name in zip(here.devices[1:], names[1:], strict=True):
            process = device.start("-m", "tests.cluster.process", str(folder / name), name, device.address)
            processes.append(process)
            addresses.append((name, line_with(process, "listening").split()[1]))
        with running(processes[0]), running(processes[1]), here.inside(here.devices[0]):
            head = Head(homes[0], connect(homes[0], addresses, ignore), ignore)
            yield here, head, processes
            head.close()


def begin(head: Head, way: str) -> LinkedCollective:
    shard = Shard(make_offer(4, lambda at, count: bytes(4)), lambda at, count: bytes(4))
    return head.begin([shard] * len(head.remotes), way, "f32", numbers=2049)


def rounds(group: LinkedCollective, count: int) -> float:
    """What one of some sums took, in s."""
    group.announce(f"{count} 2049".encode())
    started = time.perf_counter()
    for _ in range(count):
        x = np.ones(2049, np.float32)
        group.all_reduce(x)
        assert (x == group.size).all()
    return (time.perf_counter() - started) / count


def test_links_are_measured_and_sums_take_as_long_as_predicted(three: Three) -> None:
    _, head, _ = three
    group = begin(head, "auto")
    links = head.links
    assert links is not None
    assert head.way == choose_way(links, 3, 4 * 2049, FOLDING)
    rounds(group, 3)
    group.announce(b"")
    if not can_emulate():
        return
    # nothing is faster than the switch; how much slower it is depends on what else this machine does
    assert 0.005 < links.hop_s < 0.02
    assert 0.6e-7 < links.byte_s < 2e-6
    for way, hops, messages in (("star", 2, 3), ("mesh", 1, 2)):
        emulated = hops * 0.005 + messages * 4 * 2049 * 8 / 1e8
        group = begin(head, way)
        assert emulated * 0.85 < rounds(group, 12) < emulated * 4
        group.announce(b"")


@pytest.mark.skipif(not can_emulate(), reason="rates are changed in network namespaces, which only root may make")
def test_a_cable_of_another_rate_is_measured_again(three: Three) -> None:
    here, head, _ = three
    rates = []
    for bits_per_s in (1e8, 2e7):
        here.tell(f"rate {bits_per_s:.0f}")
        group = begin(head, "auto")
        assert head.links is not None
        rates.append(8 / head.links.byte_s)
        group.announce(b"")
    here.tell("rate 100000000")
    assert rates[1] < 0.4 * rates[0]


def test_a_pulled_cable_is_noticed_within_a_second(three: Three) -> None:
    """And so is a process that dies; who is left goes on."""
    here, head, processes = three
    group = begin(head, "star")
    rounds(group, 2)
    started = time.monotonic()
    if here.switch is None:
        processes[1].kill()
    else:
        here.tell("down 2")
    with pytest.raises(LostPeerError):
        while True:
            rounds(group, 2)
    assert time.monotonic() - started < 1.5  # a second, and what a busy machine adds
    head.end()
    assert [remote.name for remote in head.remotes] == ["attic"]
    group = begin(head, "star")
    rounds(group, 2)
    group.announce(b"")
