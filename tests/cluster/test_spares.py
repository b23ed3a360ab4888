"""Devices that listen, a model that they compute, and how much is sent: at first, for a loss, and the second time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from edgerun.api.cluster import load_clustered
from edgerun.api.llm import LLM
from edgerun.cluster.channel import Channel
from edgerun.cluster.control import Offer
from edgerun.cluster.home import Home
from edgerun.cluster.household import Household
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.cluster.shard_file import ShardSource
from edgerun.cluster.shards import make_offer
from edgerun.cluster.shares import divide
from edgerun.cluster.wire import Link
from edgerun.cluster.worker import work
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec
from edgerun.options import load_options
from tests.cluster.homes import Heard, acquainted, home_of, serving
from tests.cluster.in_threads import one_thread, resident
from tests.tiny_model import make_tiny_model

OPTIONS = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
PROMPT = "the cat sat on the mat"
PROBE_BYTES = 8 * 4 * 2**15  # in each direction of a link that is measured: two exchanges, four times


@contextmanager
def devices(folder: Path, count: int) -> Iterator[tuple[Home, list[Server]]]:
    """A desk that knows so many others, which listen."""

    def compute(collective: object, shard: Path, details: bytes) -> None:
        work(collective, shard, details, resident(one_thread))

    desk, *homes = acquainted(folder, "desk", *(f"device{number}" for number in range(count)))
    with ExitStack() as stack:
        servers = [serving(home, compute) for home in homes]
        for home, server in zip(homes, servers, strict=True):
            stack.callback(server.close)
            desk.admit(Member(home.identity.certificate, server.address))
        yield desk, servers


@contextmanager
def running(model: Path, desk: Home) -> Iterator[LLM]:
    household = Household(desk, Heard())
    given = load_options({"threads": 1})
    engine, _, release = load_clustered(model, given, household, own_rate=1.0, shards=desk.shards)
    with LLM.from_engine(engine, release=release) as llm:
        yield llm


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of shards, and of the offers before them, each time that a device was given one."""
    found: list[int] = []
    give = Remote.give

    def counted(self: Remote, offer: Offer, *rest: object) -> int:
        n_bytes = give(self, offer, *rest)
        found.append(n_bytes + len(msgspec.msgpack.encode(offer)))
        return n_bytes

    monkeypatch.setattr(Remote, "give", counted)
    return found


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes that all devices have sent so far, before encryption: messages, shards in them, and numbers."""
    messages: list[int] = []
    links: list[Link] = []
    send, link = Channel.send, Link.__init__

    def counted(self: Channel, message: bytes, *rest: float) -> None:
        messages.append(len(message))
        send(self, message, *rest)

    def noted(self: Link, connection: socket.socket, peer: int) -> None:
        links.append(self)
        link(self, connection, peer)

    monkeypatch.setattr(Channel, "send", counted)
    monkeypatch.setattr(Link, "__init__", noted)
    return lambda: sum(messages) + sum(link.sent_bytes for link in links)


def wait_for_spares() -> None:
    end = time.monotonic() + 60
    while any(each.name == "spare shards" for each in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.02)


def test_a_loss_and_a_second_start_send_nearly_nothing(
    tmp_path: Path, sent: list[int], moved: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerun.cluster.cables._MORE_S", 1.0)  # a busy machine answers late; see test_links.py
    model = make_tiny_model(tmp_path / "tiny.gguf", layers=3)
    with LLM(model, threads=1) as llm:
        wanted = llm.complete(PROMPT, **OPTIONS).text
    with devices(tmp_path, 3) as (desk, servers):
        with running(model, desk) as llm:
            assert llm.complete(PROMPT, **OPTIONS).text == wanted
            first = sum(sent[:3])
            wait_for_spares()
            assert len(sent) == 3 + 3 * 2  # each of three lost, for two that are left
            assert sum(n_bytes > 1000 for n_bytes in sent[3:]) == 2  # of the same two shards: others gave the rest
            sent.clear()
            text = ""
            for chunk in llm.stream(PROMPT, **OPTIONS):
                text += chunk.text
                if len(text) > 20 and len(servers) == 3:
                    servers.pop(1).close()
            assert text == wanted and llm.engine.decoder.size == 3
            assert sum(sent[:2]) < first / 100
            wait_for_spares()  # the next start would go on with them
        sent.clear()
        before = moved()
        assert before > 6 * PROBE_BYTES  # of three links, in both directions
        with running(model, desk) as llm:
            assert llm.complete(PROMPT, **OPTIONS).text == wanted
            assert llm.engine.decoder.size == 3
        assert 0 < sum(sent) < first / 100
        assert moved() - before < 1_000_000


def test_spares_remove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = home_of(tmp_path, "attic").shards
    offer = make_offer(600, lambda at, count: bytes(count))
    monkeypatch.setattr("edgerun.cluster.shards._room", lambda status: status.st_size)
    monkeypatch.setattr(
        "edgerun.cluster.shards.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1500 - store.kept_bytes()})
    )
    (store.made() / "old.gguf").write_bytes(bytes(500))
    with pytest.raises(DoesNotFitError, match="beside those that must be kept"):
        store.missing(msgspec.structs.replace(offer, spare=True))
    assert (store.folder / "old.gguf").exists()
    assert store.missing(offer) == (0,)
    assert not (store.folder / "old.gguf").exists()


def test_a_shard_that_may_be_needed_again_stays_until_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = make_tiny_model(tmp_path / "tiny.gguf", layers=1), home_of(tmp_path, "attic").shards
    with open_gguf(model) as gguf:
        spec = load_spec(gguf)
        half, whole = (ShardSource(gguf, spec, divide(spec, spec.tensors, parts)[0]) for parts in ([1.0, 1.0], [1.0]))
        disk_bytes = 2 * whole.n_bytes + half.n_bytes  # half of it is for shards: for each of the two, not for both
        monkeypatch.setattr("edgerun.cluster.shards._room", lambda status: status.st_size)
        monkeypatch.setattr(
            "edgerun.cluster.shards.shutil.disk_usage",
            lambda path: type("Usage", (), {"free": disk_bytes - store.kept_bytes()}),
        )
        (store.made() / "old.gguf").write_bytes(bytes(1000))
        first = store.own(half)
        with pytest.raises(DoesNotFitError, match="beside those that must be kept"):
            store.own(whole, beside_own=True)
        assert first.exists() and not store.has_own(whole)
        there: list[bool] = []
        second = store.own(whole, pace=lambda: there.append(first.exists()))
        assert there and all(there)
        assert list(store.folder.iterdir()) == [second] and store.has_own(whole)


def test_a_shard_that_is_asked_for_again_is_not_changed(tmp_path: Path) -> None:
    """Whoever computes with it would believe that somebody wrote to it."""
    model, store = make_tiny_model(tmp_path / "tiny.gguf", layers=1), home_of(tmp_path, "attic").shards
    with open_gguf(model) as gguf:
        spec = load_spec(gguf)
        source = ShardSource(gguf, spec, divide(spec, spec.tensors, [1.0, 1.0])[0])
        path = store.own(source)
        os.utime(path, (1, 1))
        assert store.own(source) == path
    assert path.stat().st_mtime == 1 < path.stat().st_atime


def test_a_shard_is_another_one_when_somebody_writes_to_the_model(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny.gguf", layers=1)

    def digests() -> list[str]:
        with open_gguf(model) as gguf:
            spec = load_spec(gguf)
            return [ShardSource(gguf, spec, share).digest for share in divide(spec, spec.tensors, [1.0, 1.0])]

    before = digests()
    assert digests() == before and len(set(before)) == 2
    data = bytearray(model.read_bytes())
    data[-1] ^= 1  # a weight, of the same size and place
    model.write_bytes(data)
    assert not set(digests()) & set(before)
