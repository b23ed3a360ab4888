"""An LLM over a group of devices: the same text, also when devices go and come in the middle of it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import pytest

from edgerun.api.cluster import load_clustered
from edgerun.api.llm import LLM
from edgerun.cluster.group import GroupDecoder
from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.shards import ShardStore
from edgerun.errors import UsageError
from edgerun.events import Notice
from edgerun.options import load_options
from tests.cluster.in_threads import one_thread, resident
from tests.cluster.thread_assembly import ThreadAssembly
from tests.tiny_model import make_tiny_model

PROMPT = "the cat sat on the mat and the dog was in the house"
OPTIONS = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=3)


@pytest.fixture(scope="module")
def wanted(model):
    with LLM(model, threads=1) as llm:
        return llm.complete(PROMPT, **OPTIONS).text


@pytest.fixture
def _interrupts_work():
    """Also where the shell that started the tests has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def clustered(model, rates, folder, own_rate=1.0, **options) -> Iterator[tuple[LLM, ThreadAssembly]]:
    """The model on a head and devices of these rates."""
    assembly = ThreadAssembly(rates, folder, resident(one_thread))
    given = load_options({"threads": 1, **options})
    engine, _, release = load_clustered(model, given, assembly, own_rate=own_rate, shards=ShardStore(folder))
    with LLM.from_engine(engine, release=release) as llm:
        yield llm, assembly
    assert not assembly.errors


@pytest.mark.parametrize(("own", "rates"), [(1, [1]), (4, [2, 1]), (1, [1, 1, 1])])
def test_the_same_text(own, rates, model, wanted, tmp_path):
    with clustered(model, rates, tmp_path, own) as (llm, _):
        decoder = llm.engine.decoder
        assert isinstance(decoder, GroupDecoder) and decoder.size == 1 + len(rates)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.complete(PROMPT, **OPTIONS, seed=1).text == wanted  # begins with what is held


def test_devices_that_go_cost_not_a_token(model, wanted, tmp_path):
    with clustered(model, [1, 1, 1], tmp_path) as (llm, assembly):
        text, lost = "", 0
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if lost < 3 and len(text) > 8 + 12 * lost:  # one after the other, at some call
                assembly.lose(0, after_calls=3 + 5 * lost)
                lost += 1
        assert lost == 3 and text == wanted
        assert llm.engine.decoder.size == 1
        assert llm.complete(PROMPT, **OPTIONS).text == wanted


def test_a_device_that_comes_takes_part_from_the_next_prompt(model, wanted, tmp_path):
    with clustered(model, [1], tmp_path) as (llm, assembly):
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assembly.come(2.0)
        assert llm.engine.decoder.size == 2
        assert llm.complete("a " + PROMPT, **OPTIONS).text
        assert llm.engine.decoder.size == 3
        assert llm.complete(PROMPT, **OPTIONS).text == wanted


def test_a_device_that_comes_takes_part_though_the_prompt_is_held_already(model, wanted, tmp_path):
    with clustered(model, [1], tmp_path) as (llm, assembly):
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assembly.come(1.0)
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 3


def test_what_a_loss_would_need_is_known_before(model, wanted, tmp_path):
    with clustered(model, [1, 2, 1], tmp_path) as (llm, assembly):
        text = ""
        for chunk in llm.stream(PROMPT, **OPTIONS):
            text += chunk.text
            if assembly.groups == 1 and len(text) > 8:
                spares = assembly.spares
                assembly.lose(1, after_calls=3)
        assert text == wanted and assembly.groups == 2
        assert len(spares) == 3 and assembly.begun[1] == spares[1]


def test_a_slow_device_is_named_and_left_out_of_the_next_prompt(model, wanted, tmp_path):
    said = []
    with clustered(model, [1, 1, 1], tmp_path, events=said.append) as (llm, assembly):
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        for _ in range(2):
            llm.engine.decoder._formed.judge.hear(
                [RankTimes(20, 9.0, 9.0 - own_s, 0.0, 50) for own_s in (2.0, 2.0, 8.0, 2.0)]
            )
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert llm.engine.decoder.size == 3 and assembly.names() == ["device 0", "device 2"]
    assert any("device 1 is slow" in each.text for each in said if isinstance(each, Notice))


def test_several_readers_go_on_when_a_device_goes(model, wanted, tmp_path):
    with clustered(model, [1, 1], tmp_path) as (llm, assembly):
        found: dict[int, str] = {}

        def read(number: int) -> None:
            found[number] = llm.complete(PROMPT, **OPTIONS).text

        threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        assembly.lose(1, after_calls=40)
        for thread in threads:
            thread.join(60)
        assert found == dict.fromkeys(range(3), wanted)
        assert llm.engine.decoder.size == 2


@pytest.mark.usefixtures("_interrupts_work")
def test_an_interrupt_leaves_the_group_together(model, wanted, tmp_path):
    with clustered(model, [1, 1], tmp_path) as (llm, assembly):
        assert llm.complete(PROMPT, **OPTIONS).text == wanted
        for calls in (2, 11, 30):
            assembly.ranks[0].interrupts_after = calls  # the main thread, which waits for the step
            with pytest.raises(KeyboardInterrupt):
                llm.complete(PROMPT, **OPTIONS)
            assert llm.complete(PROMPT, **OPTIONS).text == wanted
        assert assembly.groups == 1


def test_guesses_go_through_the_group(model, wanted, tmp_path):
    with clustered(model, [1], tmp_path) as (llm, _), LLM(model, threads=1, draft="lookup") as alone:
        text = "the cat sat. the cat sat. the cat"
        assert llm.complete(text, **OPTIONS).text == alone.complete(text, **OPTIONS).text


def test_a_prompt_backend_is_refused(model, tmp_path):
    assembly = ThreadAssembly([1], tmp_path, resident(one_thread))
    with pytest.raises(UsageError, match="prefill"):
        load_clustered(
            model, load_options({"prefill": "ort-cpu:w8a8"}), assembly, own_rate=1.0, shards=ShardStore(tmp_path)
        )
