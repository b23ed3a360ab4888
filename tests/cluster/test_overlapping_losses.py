"""Devices that are lost, or come back, while the group is being made anew after a loss: not a token is lost or changed,
and nobody waits for who is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import numpy as np
import pytest

from edgerun.api.cluster import load_clustered
from edgerun.api.llm import LLM
from edgerun.cluster.group import shares_of, sources_of
from edgerun.cluster.head import Head, Shard, connect
from edgerun.cluster.household import Household
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.server import Server
from edgerun.cluster.shards import ShardStore, make_offer
from edgerun.cluster.worker import OpenedShard
from edgerun.errors import DoesNotFitError, LostPeerError, NetworkError
from edgerun.events import Notice, ignore
from edgerun.options import load_options
from tests.cluster.homes import acquainted
from tests.cluster.in_threads import one_thread, resident
from tests.cluster.lab import Lab, can_emulate, lab, line_with, running
from tests.cluster.test_group import OPTIONS, PROMPT, clustered
from tests.cluster.test_server import gathered, shard_of, step
from tests.cluster.test_spares import devices
from tests.cluster.test_spares import running as llm_of
from tests.cluster.thread_assembly import ThreadAssembly
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=2)


@pytest.fixture(scope="module")
def wanted(model):
    with LLM(model, threads=1) as llm:
        return llm.complete(PROMPT, **OPTIONS).text


def interrupt() -> None:
    raise KeyboardInterrupt


# What happens while the second group is made, and how many take part at last.
EVENTS: dict[str, tuple[str, Callable[[ThreadAssembly], Callable[[], None]], int]] = {
    "another goes before anybody is asked": ("asked", lambda a: lambda: a.lose(0), 2),
    "another goes while shards are given": ("given", lambda a: lambda: a.lose(1), 2),
    "another goes before it says what it can do": ("begun", lambda a: lambda: a.lose(0), 2),
    "another goes while the text is computed again": ("begun", lambda a: lambda: a.lose(1, after_calls=4), 2),
    "both others go at once": ("begun", lambda a: lambda: (a.lose(0), a.lose(0, after_calls=1)), 1),
    "one comes back while shards are given": ("given", lambda a: lambda: a.come(1.0), 3),
}


@pytest.mark.parametrize("what", EVENTS)
def test_a_second_event_while_a_loss_is_handled_costs_not_a_token(what, model, wanted, tmp_path):
    moment, make, left = EVENTS[what]
    with clustered(model, [1, 1, 1], tmp_path) as (llm, assembly):
        text = ""
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if len(text) > 12 and not assembly.events and assembly.groups == 1:
                assembly.events[2, moment] = make(assembly)
                assembly.lose(2, after_calls=3)
        assert text == wanted and not assembly.events and llm.engine.decoder.size == left
        assert llm.complete("a " + PROMPT, **OPTIONS).text  # whoever came takes part
        assert llm.engine.decoder.size == 1 + len(assembly.names())
        assert llm.complete(PROMPT, **OPTIONS).text == wanted


def vanish(assembly: ThreadAssembly) -> None:
    """All three others in one moment."""
    assembly.lose(2, after_calls=3)
    assembly.lose(1)
    assembly.lose(0)


def test_all_others_vanish_and_are_back_before_anything_is_cut(model, wanted, tmp_path):
    with clustered(model, [1, 1, 1], tmp_path) as (llm, assembly):
        kept = set(tmp_path.glob("*.gguf"))
        text = ""
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if len(text) > 12 and not assembly.events and assembly.groups == 1:
                assembly.events[2, "regained"] = lambda: [assembly.come(1.0) for _ in range(3)]
                vanish(assembly)
        assert text == wanted and not assembly.events and llm.engine.decoder.size == 4
        assert assembly.begun[1] == assembly.begun[0] and set(tmp_path.glob("*.gguf")) == kept


@pytest.mark.parametrize("fits", [True, False])
def test_who_is_alone_cuts_nothing_where_the_model_fits_or_a_cut_has_no_room(
    fits, model, wanted, tmp_path, monkeypatch
):
    said = []
    monkeypatch.setattr("edgerun.cluster.group._is_read_apart", lambda _: fits)
    with clustered(model, [1, 1, 1], tmp_path, events=said.append) as (llm, assembly):
        kept = set(tmp_path.glob("*.gguf"))
        usage = SimpleNamespace(free=sum(path.stat().st_size for path in kept) + 1000)
        text = ""
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if len(text) > 12 and len(assembly.names()) == 3:
                assert llm.engine.decoder._model.in_units
                monkeypatch.setattr("edgerun.cluster.shards.shutil.disk_usage", lambda _: usage)
                vanish(assembly)
        assert text == wanted and llm.engine.decoder.size == 1
        told = any("alone from the model's file" in each.text for each in said if isinstance(each, Notice))
        assert told == (not fits)  # then the last bits of sums differ
        assert set(tmp_path.glob("*.gguf")) == kept
        for _ in range(3):
            assembly.come(1.0)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 4 and assembly.begun[1] == assembly.begun[0]


def test_an_interrupt_while_a_loss_is_handled_leaves_what_can_go_on(model, wanted, tmp_path):
    with clustered(model, [1, 1], tmp_path) as (llm, assembly):
        for moment in ("given", "begun"):
            assembly.events[assembly.groups + 1, moment] = interrupt
            llm.engine.decoder._formed.conductor._collective.close()  # lost all at once
            with pytest.raises(KeyboardInterrupt):
                llm.complete(PROMPT, **OPTIONS)
            assert llm.complete(PROMPT, **OPTIONS).text == wanted and llm.engine.decoder.size == 3
        assembly.errors.clear()


def test_a_rank_that_cannot_load_its_shard_says_why(model, tmp_path):
    def opened(gguf, spec, options, events) -> OpenedShard:
        if not spec.shard.text:
            raise DoesNotFitError("its shard needs 3 GiB, and there is 1")
        return resident(one_thread)(gguf, spec, options, events)

    assembly = ThreadAssembly([1, 1], tmp_path, opened)
    with pytest.raises(DoesNotFitError, match="device 0 cannot take part: its shard needs 3 GiB"):
        load_clustered(model, load_options({}), assembly, own_rate=1.0, shards=ShardStore(tmp_path))
    assert assembly.groups == 1


# -- over the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["give", "begin"])
def test_a_second_device_that_dies_while_the_group_is_made_anew(moment, model, wanted, tmp_path, monkeypatch):
    plain = getattr(Remote, moment)
    with devices(tmp_path, 3) as (desk, servers), llm_of(model, desk) as llm:
        left: list[Server] = []

        def dies(self: Remote, *rest: object) -> object:
            if left:
                left.pop().close()
            return plain(self, *rest)

        monkeypatch.setattr(Remote, moment, dies)
        text = ""
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if len(text) > 12 and len(servers) == 3:
                left.append(servers[1])
                servers.pop().close()
        assert text == wanted and not left and llm.engine.decoder.size == 2


def test_devices_whose_cables_were_loose_for_a_moment_take_part_again(model, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerun.cluster.group._REGAIN_S", 20.0)  # on a busy machine; it ends when all are back
    with devices(tmp_path, 2) as (desk, _), llm_of(model, desk) as llm:
        decoder, text = llm.engine.decoder, ""
        formed = decoder._formed
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if len(text) > 12 and decoder._formed is formed:
                for remote in decoder._assembly._head.remotes:
                    remote._heartbeat._lost("silence")
        assert text == wanted and decoder.size == 3 and decoder._formed is not formed
        whole = sources_of(decoder._model, shares_of(decoder._model, ()))[0]
        assert not desk.shards.has_own(whole)


def test_a_device_that_works_for_another_head_is_asked_again_later(tmp_path):
    with ExitStack() as stack:
        other, servers, homes = gathered(tmp_path, stack, 1)
        late = Head(homes[0], connect(homes[0], [("worker1", servers[0].address)], ignore), ignore)
        stack.callback(late.close)
        homes[0].admit(Member(homes[1].identity.certificate, servers[0].address))
        group = other.begin([shard_of(10)], "star", "f32")
        with pytest.raises(LostPeerError, match="works for another job"):
            late.begin([shard_of(10)], "star", "f32")
        assert late.remotes == () and step(group) == 11
        household = Household(homes[0], ignore)
        stack.callback(household.close)
        assert not household.has_news()
        group.announce(b"stop")
        other.close()
        end = time.monotonic() + 10
        while not household.has_news() and time.monotonic() < end:
            time.sleep(0.05)
        assert len(household.abilities()) == 1


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Iterator[tuple[Lab, Head, Callable[[], list[Remote]]]]:
    """A head in this process, three workers that add up, and connections to those that it lost, once they are free."""
    folder = tmp_path_factory.mktemp("lab")
    names = ["desk", "attic", "kitchen", "shed"]
    with lab(folder, 4) as here, ExitStack() as stack:
        homes, members = acquainted(folder, *names), []
        for device, home, name in zip(here.devices[1:], homes[1:], names[1:], strict=True):
            process = device.start("-m", "tests.cluster.process", str(folder / name), name, device.address)
            stack.enter_context(running(process))
            members.append(Member(home.identity.certificate, line_with(process, "listening").split()[1]))
        stack.enter_context(here.inside(here.devices[0]))
        head = Head(homes[0], [], ignore)
        stack.callback(head.close)

        def others() -> list[Remote]:
            found = []
            for member in members:
                while member.name not in [remote.name for remote in (*head.remotes, *found)]:
                    with suppress(NetworkError):
                        remote = Remote(homes[0], member)
                        if not remote.device.job:
                            found.append(remote)
                            break
                        remote.close()
                    time.sleep(0.1)
            return found

        yield here, head, others


def grouped(head: Head, cut: Callable[[], None] = lambda: None) -> LinkedCollective:
    """A group of all that are left, once there is one. cut: called while shards are given."""
    while head.remotes:
        data = os.urandom(8)

        def read(at: int, count: int, data: bytes = data) -> bytes:
            cut()
            return data[at : at + count]

        offer = make_offer(8, lambda at, count, data=data: data[at : at + count])
        with suppress(LostPeerError):
            return head.begin([Shard(offer, read)] * len(head.remotes), "mesh", "f32")
    raise AssertionError("nobody is left")


def added(group: LinkedCollective) -> float:
    group.announce(b"1 8")
    x = np.ones(8, np.float32)
    group.all_reduce(x)
    return float(x[0])


@pytest.mark.skipif(not can_emulate(), reason="cables are pulled in network namespaces, which only root may make")
@pytest.mark.parametrize("moment", ["at once", "while shards are given"])
def test_two_pulled_cables_cost_a_second_each_and_their_devices_come_back(moment, four):
    here, head, others = four
    head.add(others())
    group = grouped(head)
    assert added(group) == 4
    downs = ["down 3"]
    here.tell("down 2")
    if moment == "at once":
        here.tell(downs.pop())
    began = time.monotonic()
    with pytest.raises(LostPeerError):
        while True:
            added(group)
    group = grouped(head, lambda: here.tell(downs.pop()) if downs else None)
    assert added(group) == 2 and [remote.name for remote in head.remotes] == ["attic"]
    assert time.monotonic() - began < 2.5  # 0.95 s for each, and what a busy machine adds
    for number in (2, 3):
        here.tell(f"up {number}")
    head.add(others())
    assert added(grouped(head)) == 4
