"""Devices in one process: joining, shards, jobs, and how they end."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgerun.cluster.channel import Channel
from edgerun.cluster.collective import Collective
from edgerun.cluster.control import (
    CONTROL,
    NUMBERS,
    PIECE_BYTES,
    Begin,
    Done,
    Hello,
    Knock,
    Offer,
    Piece,
    Seat,
    Want,
    Welcome,
    ask,
    hear,
    say,
)
from edgerun.cluster.dial import dial, dial_host, format_address, parse_address
from edgerun.cluster.head import Head, Shard, connect
from edgerun.cluster.holders import Holders
from edgerun.cluster.home import Home
from edgerun.cluster.pairing import join_host
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.cluster.shards import make_offer
from edgerun.errors import DoesNotFitError, EdgerunError, LostPeerError, NetworkError, NotFoundError, UsageError
from tests.cluster.homes import Heard, acquainted, home_of, serving

ROUNDS = 20


def add_up(collective: Collective, shard: Path, details: bytes) -> None:
    """A worker whose share of every sum is its shard's first number."""
    weight = np.frombuffer(shard.read_bytes()[:4], np.float32)[0]
    while collective.announce(b"") == b"step":
        x = np.empty(8, np.float32)
        collective.broadcast(x)
        x *= weight
        collective.all_reduce(x)


def shard_of(weight: float, n_bytes: int = 4) -> Shard:
    data = (np.float32(weight).tobytes() * (-(-n_bytes // 4)))[:n_bytes]
    return Shard(make_offer(n_bytes, lambda at, count: data[at : at + count]), lambda at, count: data[at : at + count])


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def gathered(tmp_path: Path, closing: ExitStack, workers: int) -> tuple[Head, list[Server], list[Home]]:
    homes = acquainted(tmp_path, "desk", *(f"worker{i}" for i in range(1, workers + 1)))
    servers = [serving(home, add_up) for home in homes[1:]]
    for server in servers:
        closing.callback(server.close)
    addresses = [(home.identity.name, server.address) for home, server in zip(homes[1:], servers, strict=True)]
    head = Head(homes[0], connect(homes[0], addresses, Heard()), Heard())
    closing.callback(head.close)
    return head, servers, homes


def step(collective: Collective) -> float:
    collective.announce(b"step")
    x = np.ones(8, np.float32)
    collective.broadcast(x)
    collective.all_reduce(x)
    return float(x[0])


@pytest.mark.parametrize("way", ["star", "mesh", "auto"])
def test_a_group_adds_up_and_is_made_again_without_who_is_lost(tmp_path: Path, closing: ExitStack, way: str) -> None:
    head, servers, _ = gathered(tmp_path, closing, 3)
    group = head.begin([shard_of(10), shard_of(100), shard_of(1000)], way, "f32")
    assert [step(group) for _ in range(ROUNDS)] == [1111.0] * ROUNDS
    assert (head.way == way) == (way != "auto") == (head.links is None)
    started = time.monotonic()
    servers[1].close()
    with pytest.raises(LostPeerError):
        for _ in range(ROUNDS):
            step(group)
            time.sleep(0.1)
    head.end()
    assert [remote.name for remote in head.remotes] == ["worker1", "worker3"]
    group = head.begin([shard_of(10), shard_of(2000)], way, "q8")
    assert step(group) == pytest.approx(2011, rel=0.01)
    assert time.monotonic() - started < 10
    group.announce(b"stop")


def test_a_device_with_a_slow_disk_may_take_its_time(
    tmp_path: Path, closing: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, _, homes = gathered(tmp_path, closing, 1)
    store = homes[1].shards
    keep = store.keep
    monkeypatch.setattr(store, "keep", lambda piece: time.sleep(1) or keep(piece))  # type: ignore[func-returns-value]
    monkeypatch.setattr("edgerun.cluster.remote._ANSWER_S", 0.5)  # for all else
    group = head.begin([shard_of(100)], "star", "f32")
    assert step(group) == 101


def test_shards_are_sent_once_and_resumed(tmp_path: Path, closing: ExitStack) -> None:
    head, _, homes = gathered(tmp_path, closing, 1)
    (remote,) = head.remotes
    data = np.random.default_rng(0).bytes(3 * PIECE_BYTES - 1000)

    def read(at: int, count: int) -> bytes:
        return data[at : at + count]

    offer = make_offer(len(data), read)
    asked: list[int] = []

    def breaks(at: int, count: int) -> bytes:
        asked.append(at)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return read(at, count)

    with pytest.raises(KeyboardInterrupt):
        remote.give(offer, breaks, Heard(), Holders())
    assert homes[1].shards.kept_bytes() == len(data)  # of which a third is there
    assert remote.give(offer, read, Heard(), Holders()) == len(data) - PIECE_BYTES
    assert homes[1].shards.finish(offer.shard).read_bytes() == data
    assert remote.give(offer, read, Heard(), Holders()) == 0
    homes[1].shards.finish(offer.shard).with_suffix(".mark").touch()  # the power failed before the disk had it
    again = home_of(tmp_path, "worker1").shards
    assert again.missing(offer) == () and again.finish(offer.shard).read_bytes() == data
    other = make_offer(8, lambda at, count: b"12345678")
    with pytest.raises(EdgerunError, match="not what was offered"):
        remote.give(other, lambda at, count: b"87654321", Heard(), Holders())


def test_what_was_not_offered_is_not_kept(tmp_path: Path, closing: ExitStack) -> None:
    _, servers, homes = gathered(tmp_path, closing, 1)
    channel = Channel(dial(homes[0], homes[1].identity.fingerprint, servers[0].address, CONTROL))
    ask(channel, Hello(homes[0].roster, ""), Welcome, 5)
    digest = hashlib.sha256(b"x").hexdigest()
    offer = make_offer(1, lambda at, count: b"x")
    seats = (Seat(homes[0].identity.fingerprint, ""), Seat(homes[1].identity.fingerprint, ""))
    refused = [
        (Piece(digest, 0, b"x"), "not offered"),
        (Offer(digest, 1, (digest,)), "not those of its shard"),
        (Offer(offer.shard, 2 << 40, offer.pieces), "not those of its shard"),
        (Begin(bytes(16), 1, seats, digest, "star", "f32", 8, b""), "no such shard"),
        (Begin(bytes(16), 0, seats, digest, "star", "f32", 8, b""), "no seat"),
        (Begin(bytes(16), 1, seats, None, "star", "f32", 8, b""), "nothing to do"),
        (Want(digest, 0), "no such shard"),
        (Begin(bytes(16), 1, (seats[1], seats[1]), digest, "star", "f32", 8, b""), "another head"),
    ]
    for request, why in refused:
        with pytest.raises(EdgerunError, match=why):
            ask(channel, request, Done, 5)
    say(channel, offer)
    hear(channel, 5)
    with pytest.raises(EdgerunError, match="not what was offered"):
        ask(channel, Piece(offer.shard, 0, b"y"), Done, 5)
    names = {path.name for path in (homes[1].folder / "shards").iterdir()}
    assert names == {f"{offer.shard}.part"}


def test_strangers_and_nonsense_are_turned_away(tmp_path: Path, closing: ExitStack) -> None:
    """And the device goes on with its work."""
    head, servers, homes = gathered(tmp_path, closing, 1)
    group = head.begin([shard_of(10)], "star", "f32")
    stranger = home_of(tmp_path, "stranger")
    stranger.admit(Member(homes[1].identity.certificate))
    rng = np.random.default_rng(0)
    for kind in (CONTROL, NUMBERS):
        with pytest.raises(EdgerunError):
            secure = dial(stranger, homes[1].identity.fingerprint, servers[0].address, kind)
            Channel(secure).receive(5)
    for _ in range(20):
        with socket.create_connection(parse_address(servers[0].address)) as raw:
            raw.sendall(b"edgerun\x01"[: rng.integers(9)] + rng.bytes(rng.integers(1, 400)))
    knocking = dial(homes[0], homes[1].identity.fingerprint, servers[0].address, NUMBERS)
    say(Channel(knocking), Knock(head._job, 1))  # the worker's own rank
    with pytest.raises(NetworkError):
        Channel(knocking).receive(5)
    control = dial(homes[0], homes[1].identity.fingerprint, servers[0].address, CONTROL)
    Channel(control).send(rng.bytes(300))
    with pytest.raises(NetworkError):
        Channel(control).receive(5)
    assert step(group) == 11
    group.announce(b"stop")


def test_a_device_joins_by_code_and_is_known_to_all(tmp_path: Path, closing: ExitStack) -> None:
    events = Heard()
    attic, kitchen, shed = (home_of(tmp_path, name) for name in ("attic", "kitchen", "shed"))
    server = serving(attic, add_up, events)
    closing.callback(server.close)
    server.code.open()
    for guest in (kitchen, shed):
        with pytest.raises(NetworkError, match="code is wrong"):
            join_host(dial_host(server.address), "000000" if server.code.digits != "000000" else "1" * 6, guest.me())
        guest.learn(join_host(dial_host(server.address), server.code.digits, guest.me(":99"))[0])
    end = time.monotonic() + 5
    while "shed joined" not in events.text and time.monotonic() < end:  # it says so when it has answered
        time.sleep(0.02)
    assert "kitchen joined" in events.text and "shed joined" in events.text
    assert [member.name for member in shed.others()] == ["attic", "kitchen"]
    assert shed.others()[1].address == "127.0.0.1:99"
    (remote,) = connect(kitchen, [("attic", server.address)], events)
    assert [member.name for member in kitchen.others()] == ["attic", "shed"]  # it has heard
    assert remote.device.name == "attic" and remote.device.job == ""
    attic.put_out("kitchen")
    with pytest.raises(LostPeerError):
        remote.refresh()  # its open connection is cut, too
    assert connect(kitchen, [("attic", server.address)], events) == []
    (remote,) = connect(shed, [("attic", server.address)], events)
    remote.put_me_out()
    remote.close()
    assert attic.others() == []
    twin = home_of(tmp_path / "twin", "attic")
    with pytest.raises(NetworkError):
        join_host(dial_host(server.address), server.code.digits, twin.me())


def test_a_head_that_goes_frees_the_worker(tmp_path: Path, closing: ExitStack) -> None:
    head, servers, homes = gathered(tmp_path, closing, 1)
    head.begin([shard_of(10)], "star", "f32")
    (second,) = connect(homes[0], [("worker1", servers[0].address)], Heard())
    assert second.device.job == "a job"
    for remote in head.remotes:
        remote.close()  # as the system does for a process that dies
    end = time.monotonic() + 2
    while _job(homes[0], servers[0]) and time.monotonic() < end:
        time.sleep(0.02)
    assert _job(homes[0], servers[0]) == ""
    assert not [each for each in threading.enumerate() if each.name == "cluster job"]


def test_a_job_ends_when_somebody_in_it_is_put_out(tmp_path: Path, closing: ExitStack) -> None:
    head, _, homes = gathered(tmp_path, closing, 2)
    group = head.begin([shard_of(10), shard_of(100)], "mesh", "f32")
    homes[1].put_out("worker2")
    end = time.monotonic() + 5
    with pytest.raises(LostPeerError):
        while time.monotonic() < end:
            step(group)


def test_old_shards_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, free = home_of(tmp_path, "attic").shards, 3000

    def usage(path: Path) -> object:
        return SimpleNamespace(free=free - store.kept_bytes())

    monkeypatch.setattr("edgerun.cluster.shards._room", lambda status: status.st_size)
    monkeypatch.setattr("edgerun.cluster.shards.shutil.disk_usage", usage)
    offers = []
    for i in range(3):
        data = bytes([i]) * 600
        offers.append(make_offer(600, lambda at, count, data=data: data))
        assert store.missing(offers[-1]) == (0,)
        store.keep(Piece(offers[-1].shard, 0, data))
        os.utime(store.finish(offers[-1].shard), (i, i))
    assert [bool(store.missing(offer)) for offer in offers[1:]] == [False, False]
    with pytest.raises(NotFoundError):
        store.finish(offers[0].shard)
    with pytest.raises(DoesNotFitError, match="1501 bytes"):
        store.missing(make_offer(1501, lambda at, count: bytes(count)))


def _job(home: Home, server: Server) -> str:
    (remote,) = connect(home, [("worker1", server.address)], Heard())
    remote.close()
    return remote.device.job


def test_addresses() -> None:
    assert parse_address("box") == ("box", 8627)
    assert parse_address("box:80") == ("box", 80)
    assert parse_address("[::1]:80") == ("::1", 80) == parse_address(format_address("::1", 80))
    assert parse_address("::1") == ("::1", 8627)
    for bad in ("", ":80", "box:x", "box:70000", "box:٣", "[::1", "[box]:8", "a b"):
        with pytest.raises(UsageError):
            parse_address(bad)
