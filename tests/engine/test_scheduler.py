"""Threads that share a decoder: who computes, who waits, and what interrupts, forks and closing leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgerun.api import LLM
from edgerun.engine import Chunk, Engine, SamplingParams, Session
from edgerun.engine.scheduler import Scheduler
from edgerun.errors import BusyError, UsageError
from edgerun.models.batch import Batch
from engine.fakes import VOCAB, FakeDecoder, FakeTokenizer, fake_engine
from tests.weights.test_forks import in_child

GREEDY = SamplingParams(temperature=0, max_tokens=30)
ASCII_ONLY = [*range(32), *range(127, VOCAB)]
STEPS = "edgerun-steps"


@pytest.fixture(autouse=True)
def _no_other_engines_threads() -> None:
    """Of tests before, whose engines nobody closed: they linger for a while."""
    for thread in threading.enumerate():
        if thread.name == STEPS:
            thread.join(10)


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(layer_s=0.0003, forbid=ASCII_ONLY)


@pytest.fixture
def engine(decoder: FakeDecoder) -> Iterator[Engine]:
    engine = fake_engine(decoder, context=2000)
    yield engine
    with suppress(UsageError):
        engine.close(lambda: None)
    assert not [thread for thread in threading.enumerate() if thread.name == STEPS], "its thread lives on"


def text(prompt: str, n: int = 30) -> str:
    return Session(fake_engine(context=2000)).complete(prompt, GREEDY, max_tokens=n).text


def side_by_side(*works: Callable[[], Any]) -> list[Any]:
    """Their results, or what they raised."""
    results: list[Any] = [None] * len(works)

    def run(i: int) -> None:
        try:
            results[i] = works[i]()
        except BaseException as error:  # noqa: BLE001 - to be looked at
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it hangs"
    return results


def who_computes(decoder: FakeDecoder) -> list[str]:
    names: list[str] = []
    decoder.on_step = lambda batch: names.append(threading.current_thread().name)
    return names


def test_alone_the_readers_thread_computes(engine: Engine, decoder: FakeDecoder) -> None:
    names = who_computes(decoder)
    assert Session(engine).complete("Once", GREEDY).text == text("Once")
    assert set(names) == {threading.current_thread().name}
    assert threading.active_count() == 1 or STEPS not in [thread.name for thread in threading.enumerate()]


def test_together_they_are_computed_in_one_step(engine: Engine, decoder: FakeDecoder) -> None:
    together = side_by_side(*(lambda i=i: Session(engine).complete(f"p{i}", GREEDY).text for i in range(8)))
    assert together == [text(f"p{i}") for i in range(8)]
    assert max(map(len, decoder.batches)) == 8
    assert len(decoder.batches) < 8 * 30 / 2


def test_after_its_company_has_left_a_reader_computes_itself_again(engine: Engine, decoder: FakeDecoder) -> None:
    names = who_computes(decoder)
    answers = side_by_side(
        lambda: Session(engine).complete("long", GREEDY, max_tokens=300).text,
        lambda: Session(engine).complete("short", GREEDY, max_tokens=5).text,
    )
    assert answers == [text("long", 300), text("short", 5)]
    assert names[-1] != STEPS
    assert STEPS in names


def test_a_stream_that_is_not_read_pauses_and_costs_nobody_a_thing(engine: Engine, decoder: FakeDecoder) -> None:
    unread = Session(engine).stream("unread", GREEDY, max_tokens=100)
    said = [next(unread).text]
    other = Session(engine)
    assert other.complete("Once", GREEDY, max_tokens=60).text == text("Once", 60)
    names = who_computes(decoder)
    assert other.complete("", GREEDY).text
    assert STEPS not in names, "whoever pauses is no company"
    assert sum(decoder.fed) < 60 + 60 + 40
    said += [chunk.text for chunk in unread]
    assert "".join(said) == text("unread", 100)


def test_two_streams_read_in_turns_by_one_thread(engine: Engine) -> None:
    one, two = Session(engine).stream("one", GREEDY), Session(engine).stream("two", GREEDY)
    texts = ["", ""]
    for a, b in zip(one, two, strict=True):
        texts[0] += a.text
        texts[1] += b.text
    assert texts == [text("one"), text("two")]


def test_what_was_computed_ahead_of_its_reader_is_no_part_of_a_session(engine: Engine) -> None:
    session = Session(engine)
    with closing(Session(engine).stream("company", GREEDY, max_tokens=500)) as company:
        next(company)
        stream = session.stream("Once", GREEDY, max_tokens=100)
        said = next(stream).text + next(stream).text
        time.sleep(0.05)
        stream.close()
    assert FakeTokenizer().decode(session.ids, skip_special=True) == "Once" + said
    assert said + session.complete("", GREEDY).text == text("Once", 30 + len(said))


def test_more_calls_than_may_wait_are_refused(engine: Engine, decoder: FakeDecoder) -> None:
    engine.scheduler = Scheduler(decoder, engine.scheduler._steps._options, most_requests=2)
    streams = [Session(engine).stream("x", GREEDY) for _ in range(3)]
    next(streams[0])
    next(streams[1])
    with pytest.raises(BusyError, match="2 calls are running or waiting"):
        next(streams[2])
    streams[0].close()
    assert Session(engine).complete("Once", GREEDY).text == text("Once")
    streams[1].close()
    engine.close(lambda: None)


def test_an_error_of_one_in_company_is_told_to_that_one(engine: Engine) -> None:
    def fails(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(ids) > 10:
            raise ValueError("its own")
        return logits

    def spoils(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits if len(ids) < 10 else np.full_like(logits, np.nan)

    good, failed, spoiled, wrong = side_by_side(
        lambda: Session(engine).complete("good", GREEDY, max_tokens=60).text,
        lambda: Session(engine).complete("bad", GREEDY, processors=[fails]),
        lambda: Session(engine).complete("nan", GREEDY, processors=[spoils]),
        lambda: Session(engine).complete("x" * 3000, GREEDY),
    )
    assert good == text("good", 60)
    assert [type(error).__name__ for error in (failed, spoiled, wrong)] == [
        "ValueError",
        "UsageError",
        "ContextLengthError",
    ]


def test_a_processor_may_ask_the_same_model(engine: Engine) -> None:
    """Also where it is called by the thread that computes for all."""
    asked: list[int] = []

    def asks(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(int(engine.logits([1, 2, 3])[-1].argmax()))
        return logits

    right = int(FakeDecoder(forbid=ASCII_ONLY).row([1, 2, 3]).argmax())
    assert Session(engine).complete("alone", GREEDY, processors=[asks]).text == text("alone")
    answers = side_by_side(
        *(lambda i=i: Session(engine).complete(f"p{i}", GREEDY, processors=[asks]).text for i in range(3))
    )
    assert answers == [text(f"p{i}") for i in range(3)]
    assert asked == [right] * 120


def test_where_no_thread_can_be_had_they_take_turns(
    engine: Engine, decoder: FakeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = who_computes(decoder)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == STEPS:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    answers = side_by_side(*(lambda i=i: Session(engine).complete(f"p{i}", GREEDY).text for i in range(4)))
    assert answers == [text(f"p{i}") for i in range(4)]
    assert STEPS not in names


def test_cancelling_one_leaves_the_others_alone(engine: Engine) -> None:
    cancel = threading.Event()
    timer = threading.Timer(0.03, cancel.set)
    timer.start()
    stopped, whole = side_by_side(
        lambda: Session(engine).complete("stopped", GREEDY, max_tokens=1500, cancel=cancel),
        lambda: Session(engine).complete("whole", GREEDY, max_tokens=100).text,
    )
    assert stopped.finish_reason == "cancelled"
    assert text("stopped", 1500).startswith(stopped.text)
    assert whole == text("whole", 100)


def test_ctrl_c_of_a_reader_leaves_the_others_alone(engine: Engine, decoder: FakeDecoder) -> None:
    """An interrupt strikes the thread that reads: in company it never computes."""

    def interrupted() -> str:
        for n, _ in enumerate(Session(engine).stream("mine", GREEDY, max_tokens=500)):
            if n == 20:
                raise KeyboardInterrupt
        return "never"

    mine, other = side_by_side(interrupted, lambda: Session(engine).complete("other", GREEDY, max_tokens=100).text)
    assert isinstance(mine, KeyboardInterrupt)
    assert other == text("other", 100)
    assert Session(engine).complete("Once", GREEDY).text == text("Once")
    assert not engine.scheduler._requests


def test_a_reader_that_was_interrupted_before_it_could_leave_is_not_waited_for(engine: Engine) -> None:
    scheduler = engine.scheduler
    leave, scheduler._leave = scheduler._leave, lambda request: None  # type: ignore[method-assign]
    stream = Session(engine).stream("lost", GREEDY)
    next(stream)
    stream.close()
    scheduler._leave = leave  # type: ignore[method-assign]
    assert len(scheduler._requests) == 1
    assert Session(engine).complete("Once", GREEDY).text == text("Once")
    assert not scheduler._requests


@pytest.mark.parametrize("n_others", [0, 3])
def test_closing_at_any_moment_ends_all(decoder: FakeDecoder, n_others: int) -> None:
    for delay_s in (0.0, 0.003, 0.02):
        engine = fake_engine(decoder, context=2000)
        released: list[bool] = []

        def close(engine: Engine = engine, released: list[bool] = released, delay_s: float = delay_s) -> None:
            time.sleep(delay_s)
            engine.close(lambda: released.append(decoder.busy))

        talk = [lambda engine=engine: Session(engine).complete("x" * 500, GREEDY, max_tokens=1400)] * (1 + n_others)
        *ended, closed = side_by_side(*talk, close)
        assert closed is None
        assert released == [False], "nobody computes when it is released"
        assert {type(error) for error in ended} == {UsageError}
        assert all("closed" in str(error) for error in ended)
        assert STEPS not in [thread.name for thread in threading.enumerate()]


def test_fork_cancel_truncate_and_close_of_sessions_in_company(engine: Engine) -> None:
    """What changes a sequence waits for the step, and no step sees it half done."""

    def work(i: int) -> list[str]:
        session, said = Session(engine), []
        for turn in range(4):
            said.append(session.complete(f"{i}.{turn}", GREEDY, max_tokens=8).text)
            twin = session.fork()
            said.append(twin.complete(" twin", GREEDY, max_tokens=5).text)
            twin.close()
            stream = session.stream(" lost", GREEDY, max_tokens=50)
            n = len(session.ids)
            next(stream)
            stream.close()
            session.rewind(len(session.ids) - n)
        session.clear()
        return said

    alone = [work(i) for i in range(4)]
    assert side_by_side(*(lambda i=i: work(i) for i in range(4))) == alone


def test_a_forks_child_goes_on_with_what_its_thread_reads(engine: Engine, decoder: FakeDecoder) -> None:
    session = Session(engine)
    stream = session.stream("mine", GREEDY, max_tokens=60)
    said = [next(stream).text]
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            Session(engine).complete("other", GREEDY)

    others = [threading.Thread(target=talk, daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    time.sleep(0.05)

    def child() -> bool:
        decoder.busy = False  # a step of the other side may be under way
        mine = "".join(said + [chunk.text for chunk in stream])
        fresh = Session(engine).complete("Once", GREEDY).text
        return (mine, fresh) == (text("mine", 60), text("Once"))

    assert in_child(child) == 0
    stop.set()
    for thread in others:
        thread.join()
    assert "".join(said + [chunk.text for chunk in stream]) == text("mine", 60)


def test_asyncio_streams_that_are_not_iterated_pause(decoder: FakeDecoder) -> None:
    import asyncio

    from edgerun.api import AsyncLLM

    async def main() -> None:
        async with AsyncLLM.wrap(LLM.from_engine(fake_engine(decoder, context=2000))) as llm:
            stream = llm.stream("slow", GREEDY, max_tokens=400)
            said = [(await anext(stream)).text]
            await asyncio.sleep(0.4)
            assert sum(decoder.fed) < 100
            said += [chunk.text async for chunk in stream]
            assert "".join(said) == text("slow", 400)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_logits_scores_and_embeddings_in_company_are_those_of_one_alone(engine: Engine) -> None:
    ids = list(range(40, 90)) * 12
    works: list[Callable[[], Any]] = [
        lambda: engine.logits(ids).tobytes(),
        lambda: engine.score("some text " * 60),
        lambda: engine.embed("some text " * 50).tobytes(),
        lambda: Session(engine).complete("Once", GREEDY, max_tokens=80).text,
    ]
    alone = [work() for work in works]
    assert side_by_side(*works, *works) == alone * 2


def test_batches_have_one_stretch_of_a_sequence(engine: Engine, decoder: FakeDecoder) -> None:
    seen: list[Batch] = []
    decoder.on_step = seen.append
    session = Session(engine)
    early = session.stream("early", GREEDY, max_tokens=500)
    next(early)

    def late() -> list[Chunk]:
        return list(session.answer(engine.encode("late"), GREEDY))

    done, other = side_by_side(late, lambda: Session(engine).complete("Once", GREEDY).text)
    assert "".join(chunk.text for chunk in done) == text("late")
    assert other == text("Once")
    assert len(seen) > 30
    with pytest.raises(UsageError, match="overtaken"):
        list(early)


@pytest.mark.parametrize("where", ["within a step", "while others join"])
def test_a_stream_that_a_collection_ends_disturbs_nobody(engine: Engine, decoder: FakeDecoder, where: str) -> None:
    """Python may end a stream that nobody closed in the middle of what any thread does, also where it has the lock."""
    session, lost = Session(engine), [Session(engine).stream("lost", GREEDY, max_tokens=400)]
    lost.append(session.stream("mine", GREEDY, max_tokens=400))
    said = [next(lost[0]).text, next(lost[1]).text]
    if where == "within a step":
        decoder.on_step = lambda batch: lost.clear()
    else:
        keep = engine.scheduler._keep

        def collecting(keeps: Callable[[Any], bool]) -> None:
            lost.clear()
            keep(keeps)

        engine.scheduler._keep = collecting  # type: ignore[method-assign]
    assert side_by_side(lambda: Session(engine).complete("Once", GREEDY).text) == [text("Once")]
    assert not lost
    assert not engine.scheduler._requests
    assert FakeTokenizer().decode(session.ids, skip_special=True) == "mine" + said[1]
    assert said[1] + session.complete("", GREEDY).text == text("mine", 30 + len(said[1]))
