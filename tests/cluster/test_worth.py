"""Who takes part where not everybody is worth it: the planner's verdict, who waits, and who comes later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgerun.api.cluster import load_clustered
from edgerun.api.llm import LLM
from edgerun.cluster.control import Device
from edgerun.cluster.home import Home
from edgerun.cluster.household import Household
from edgerun.cluster.links import Links
from edgerun.cluster.plan import Model
from edgerun.cluster.profiles import PlannedDevice
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.wire_format import wire_format
from edgerun.cluster.worth import Verdict, Worth, planned_device
from edgerun.events import DevicesChosen
from edgerun.kernels import load_sizes
from edgerun.options import load_options
from tests.cluster.homes import Heard
from tests.cluster.test_spares import OPTIONS, PROMPT, devices
from tests.models.instances import open_instance
from tests.tiny_model import make_tiny_model

GIB = 1 << 30
QUICK, FAR = Links(1e-5, 8e-10, 1e-6, True), Links(0.1, 1e-6, 1e-3, True)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    gguf, spec = open_instance("llama-Q4_0", tmp_path_factory.mktemp("plans"))
    with gguf:
        yield Model(spec, load_sizes("reference"), 128)


def device(rate: float, memory_bytes: int = GIB) -> Device:
    return Device("", 1, memory_bytes, "reference", "", rate)


def head(rate: float, memory_bytes: int = GIB) -> PlannedDevice:
    return PlannedDevice("desk", memory_bytes, rate, 20 * rate, 1e8)


def test_those_take_part_with_whom_a_token_is_clearly_sooner(planned: Model) -> None:
    worth = Worth(planned, head(1e7))
    even = worth([device(1e7)] * 3, QUICK)
    assert even is not None and even.alone_s is not None
    assert even.places == (0, 1, 2) and even.token_s == even.all_s < 0.95 * even.alone_s
    far = worth([device(1e7)] * 3, FAR)
    assert far is not None and far.all_s is not None and far.alone_s == pytest.approx(even.alone_s)
    assert far.places == () and far.token_s == far.alone_s < far.all_s
    uneven = worth([device(1e3), device(1e7)], Links(1e-4, 8e-10, 1e-3, True))
    assert uneven is not None and uneven.places == (1,)  # the quickest first
    quicker = worth([device(1e11)], FAR)  # alone it would be the fastest, but the model is here
    assert quicker is not None and quicker.places == ()
    assert worth([device(1e7, 1 << 20)], QUICK) is not None
    assert Worth(planned, head(1e7, 1 << 20))([device(1e7, 1 << 20)], QUICK) is None  # it fits nowhere
    slow = Links(1e-5, 4e-6, 1e-6, True)
    exact, short = (Worth(planned, head(1e6), wire=wire_format(each))([device(1e6)], slow) for each in ("f32", "q8"))
    assert exact is not None and short is not None and exact.all_s is not None and short.all_s is not None
    assert short.all_s < exact.all_s
    told = planned_device(Device("a", 4, GIB, "", "", 0.0))
    assert told.weights_bytes_per_s == 4 * 8e9 and told.prompt_ops_per_s > 0 and told.disk_bytes_per_s > 0


class Said:
    """Verdicts by how many others are there, and of how many one was asked."""

    def __init__(self, **places: tuple[int, ...]) -> None:
        self._places = {int(key.removeprefix("of_")): value for key, value in places.items()}
        self.asked: list[int] = []

    def __call__(self, others: Sequence[Device], links: Links) -> Verdict:
        assert links.hop_s >= 0 and links.byte_s >= 0
        self.asked.append(len(others))
        return Verdict(self._places[len(others)], 0.01, 0.02, 0.03)


@contextmanager
def running(model: Path, desk: Home, worth: Worth | Said, heard: Heard) -> Iterator[LLM]:
    household = Household(desk, heard, worth=worth)
    engine, _, release = load_clustered(
        model, load_options({"threads": 1}), household, own_rate=1.0, shards=desk.shards
    )
    with LLM.from_engine(engine, release=release) as llm:
        yield llm


def chosen(heard: Heard) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Who computes and who waits, as it was said."""
    return [(each.devices, each.waiting) for each in heard.events if isinstance(each, DevicesChosen)]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    assert is_so()


def test_who_is_not_worth_it_gets_nothing_and_takes_part_when_another_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerun.cluster.household._LOOK_S", 0.05)
    given: list[str] = []
    give = Remote.give
    monkeypatch.setattr(Remote, "give", lambda self, *rest: (given.append(self.name), give(self, *rest))[1])
    model = make_tiny_model(tmp_path / "tiny.gguf", layers=3)
    with LLM(model, threads=1) as llm:
        wanted = llm.complete(PROMPT, **OPTIONS).text
    heard, worth = Heard(), Said(of_1=(), of_2=(0, 1), of_3=(0, 2))
    with devices(tmp_path, 3) as (desk, servers):
        members = {member.name: member for member in desk.others()}
        late = [members[name] for name in ("device1", "device2")]
        for member in late:
            desk.admit(Member(member.certificate, "127.0.0.1:1"))  # not there yet
        with running(model, desk, worth, heard) as llm:
            decoder = llm.engine.decoder
            assert decoder.size == 1 and llm.complete(PROMPT, **OPTIONS).text == wanted
            time.sleep(0.3)  # it is looked for others meanwhile, and who waits is not asked again
            assert llm.complete(PROMPT, **OPTIONS).text == wanted and worth.asked == [1] and not given
            assert chosen(heard) == [(("desk",), ("device0",))]
            wants = [  # with the first comes who waits
                (("desk", "device0", "device1"), ()),
                (("desk", "device0", "device2"), ("device1",)),
            ]
            for member, want in zip(late, wants, strict=True):
                desk.admit(member)
                while chosen(heard)[-1] != want:  # on a busy machine they may come one by one
                    wait_until(decoder._assembly.has_news)
                    assert llm.complete(PROMPT, **OPTIONS).text == wanted
                assert decoder.size == 3
            # One that takes part is lost: whoever waited is asked for again
            text = ""
            for chunk in llm.stream(PROMPT, **OPTIONS):
                text += chunk.text
                if len(text) > 20 and len(servers) == 3:
                    servers.pop().close()
            assert text == wanted and worth.asked[-1] < 3
            while decoder.size < 3:  # those who are there come one by one
                wait_until(decoder._assembly.has_news)
                assert llm.complete(PROMPT, **OPTIONS).text == wanted
            assert chosen(heard)[-1] == (("desk", "device0", "device1"), ())


def test_the_links_are_measured_before_anybody_is_given_a_share(tmp_path: Path, planned: Model) -> None:
    """By the verdict of the planner itself: of a tiny model a token takes less than a message."""
    model, heard = make_tiny_model(tmp_path / "tiny.gguf"), Heard()
    with devices(tmp_path, 2) as (desk, _), running(model, desk, Worth(planned, head(1e11)), heard) as llm:
        assert llm.engine.decoder.size == 1
        (said,) = (each for each in heard.events if isinstance(each, DevicesChosen))
        assert said.devices == ("desk",) and said.waiting == ("device0", "device1")
        assert said.alone_s == said.token_s < 0.95 * (said.all_s or 0.0)
