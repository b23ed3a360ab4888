"""The loop over a decoder whose every answer is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.engine import CancelToken, Chunk, Engine, SamplingParams, Session, last_completion
from edgerun.errors import ContextLengthError, DoesNotFitError, EdgerunError, UnsupportedError, UsageError
from edgerun.events import Event, PromptProcessed, TokenGenerated
from engine.fakes import BOS, EOS, VOCAB, FakeDecoder, FakeTokenizer, fake_engine

GREEDY = SamplingParams(temperature=0, max_tokens=20)


def run(engine: Engine, prompt: str = "Once", **options: object) -> list[Chunk]:
    return list(Session(engine).stream(prompt, GREEDY, **options))  # type: ignore[arg-type]


def force(text: bytes, end: int | None = None) -> object:
    """A processor that lets the model say nothing but `text`, then perhaps `end`."""
    seen: list[int] = []

    def processor(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(len(ids))
        said = len(ids) - seen[0]
        logits[:] = -np.inf
        logits[text[said] if said < len(text) else end] = 0
        return logits

    return processor


def test_greedy_takes_the_likeliest_each_time() -> None:
    decoder = FakeDecoder(forbid=[*range(32), *range(127, VOCAB)])
    chunks = run(fake_engine(decoder))
    ids = FakeTokenizer().encode("Once")
    for _ in range(20):
        ids.append(int(decoder.row(ids).argmax()))
    done = chunks[-1].completion
    assert done is not None
    assert list(done.token_ids) == ids[5:]
    assert done.text == bytes(ids[5:]).decode() == "".join(chunk.text for chunk in chunks)
    assert [i for chunk in chunks for i in chunk.token_ids] == ids[5:]
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.reused_tokens) == (5, 20, 0)
    assert done.timings.decode_steps == 19
    assert decoder.fed == [5] + [1] * 19


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_few_tokens(max_tokens: int) -> None:
    (*_, last) = run(fake_engine(), max_tokens=max_tokens)
    assert last.completion is not None
    assert len(last.completion.token_ids) == max_tokens
    assert last.finish_reason == "length"


def test_the_models_end_token_stops_and_is_not_shown() -> None:
    (*_, last) = run(fake_engine(), processors=[force(b"bye", EOS)])
    assert last.completion is not None
    assert (last.completion.text, last.finish_reason) == ("bye", "stop")
    assert last.completion.usage.completion_tokens == 3


def test_suppressed_tokens_are_never_chosen() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.suppressed_ids = frozenset((ord("a"), ord("b"), VOCAB + 5))  # beyond: padding
    done = run(fake_engine(tokenizer=tokenizer), logit_bias={ord("a"): 100.0, ord("b"): 100.0, ord("c"): 50.0})[
        -1
    ].completion
    assert done is not None
    assert done.text == "c" * 20


def test_ignore_eos() -> None:
    decoder = FakeDecoder()
    decoder.row = lambda ids: np.eye(VOCAB, dtype=np.float32)[EOS] * 9  # type: ignore[method-assign,assignment]
    assert run(fake_engine(decoder))[-1].completion.token_ids == ()  # type: ignore[union-attr]
    done = run(fake_engine(decoder), ignore_eos=True)[-1].completion
    assert done is not None
    assert len(done.token_ids) == 20


def test_the_end_of_the_context_ends_the_text() -> None:
    engine = fake_engine(context=10)
    done = last_completion(Session(engine).stream("Once", temperature=0))
    assert len(done.token_ids) == 5
    assert done.finish_reason == "length"


def test_a_prompt_longer_than_the_context_is_an_error_with_both_numbers() -> None:
    engine = fake_engine(context=10)
    with pytest.raises(ContextLengthError, match=r"11 tokens.*context 10"):
        Session(engine).stream("x" * 10)
    assert Session(engine).complete("x" * 9).finish_reason == "length"


def test_an_empty_prompt_is_an_error() -> None:
    engine = fake_engine(tokenizer=FakeTokenizer(add_bos=False))
    with pytest.raises(UsageError, match="empty"):
        Session(engine).complete("")


def test_ids_beyond_the_vocabulary_are_an_error() -> None:
    with pytest.raises(UsageError, match=rf"{VOCAB} is not in the vocabulary"):
        Session(fake_engine()).complete([1, VOCAB])


def test_characters_come_whole() -> None:
    text = "é€😀 done"
    chunks = run(fake_engine(), processors=[force(text.encode(), EOS)])
    assert "".join(chunk.text for chunk in chunks) == text
    assert all("�" not in chunk.text for chunk in chunks)


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    chunks = run(fake_engine(), processors=[force("a€".encode()[:-1], EOS)])
    assert "".join(chunk.text for chunk in chunks).startswith("a\ufffd")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_stop_strings(data: st.DataObject) -> None:
    whole = run(fake_engine())[-1].completion.text  # type: ignore[union-attr]
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : start + data.draw(st.integers(1, 4))]
    chunks = run(fake_engine(), stop=[stop, "never said"])
    text = "".join(chunk.text for chunk in chunks)
    assert text == whole[: whole.find(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_seeds() -> None:
    def text(**options: object) -> str:
        return run(fake_engine(), temperature=1.0, **options)[-1].completion.text  # type: ignore[union-attr]

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert len({text() for _ in range(5)}) > 1
    done = run(fake_engine(), temperature=1.0)[-1].completion
    assert done is not None
    assert text(seed=done.seed) == done.text


def test_the_models_seed_makes_a_reproducible_sequence() -> None:
    def texts() -> list[str]:
        engine = fake_engine(seed=5)
        return [run(engine, temperature=1.0)[-1].completion.text for _ in range(3)]  # type: ignore[union-attr]

    assert texts() == texts()
    assert len(set(texts())) == 3


def test_logprobs_are_the_models_own() -> None:
    decoder = FakeDecoder()
    engine = fake_engine(decoder)
    done = run(engine, logprobs=3, temperature=1.5, seed=3, logit_bias={65: 4.0}, ignore_eos=True)[-1].completion
    assert done is not None
    assert done.logprobs is not None
    assert len(done.logprobs) == len(done.token_ids) == 20
    ids = FakeTokenizer().encode("Once")
    for entry in done.logprobs:
        row = decoder.row(ids).astype(np.float64)
        expected = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(expected[entry.token_id], abs=1e-4)
        best = np.argsort(-expected)[:3]
        assert [other.token_id for other in entry.top] == best.tolist()
        assert [other.logprob for other in entry.top] == pytest.approx(expected[best], abs=1e-4)
        assert entry.bytes == FakeTokenizer().token_bytes(entry.token_id)
        ids.append(entry.token_id)


def test_chunks_carry_each_logprob_once() -> None:
    chunks = run(fake_engine(), logprobs=0, stop="zzzzzz")
    tokens = [entry.token_id for chunk in chunks for entry in chunk.logprobs or ()]
    assert tokens == [i for chunk in chunks for i in chunk.token_ids]
    assert len(tokens) == 20


def test_logit_bias_forces_and_forbids() -> None:
    done = run(fake_engine(), logit_bias={65: 1000.0})[-1].completion
    assert done is not None
    assert done.text == "A" * 20
    with pytest.raises(UsageError, match="vocabulary"):
        run(fake_engine(), logit_bias={VOCAB: 1})
    with pytest.raises(UsageError, match="forbidden"):
        run(fake_engine(), logit_bias={i: -np.inf for i in range(VOCAB)})


def test_processors_see_all_ids_and_must_keep_the_shape() -> None:
    seen: list[list[int]] = []

    def look(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(ids.tolist())
        return logits

    done = run(fake_engine(), processors=[look], max_tokens=3)[-1].completion
    assert done is not None
    assert seen[-1] == [BOS, *b"Once", *done.token_ids[:2]]
    with pytest.raises(UsageError, match="logits processor"):
        run(fake_engine(), processors=[lambda ids, logits: logits[:3]])


def test_penalties_see_the_prompt_within_their_window() -> None:
    session = Session(fake_engine())
    plain = session.complete("Once", GREEDY, max_tokens=1).token_ids[0]
    ids = [plain, *FakeTokenizer().encode("Once")]

    def first(**options: float) -> int:
        answer = Session(fake_engine()).complete(ids, GREEDY, max_tokens=1, **options)  # type: ignore[arg-type]
        return answer.token_ids[0]

    row = FakeDecoder(forbid=[*range(32), *range(127, VOCAB)]).row(ids)
    likeliest = int(row.argmax())
    row[ids] = -np.inf
    assert first(presence_penalty=1e6, repeat_last_n=-1) == int(row.argmax())
    assert first(presence_penalty=1e6, repeat_last_n=0) == likeliest


def test_logits_that_are_no_numbers_are_an_error() -> None:
    decoder = FakeDecoder()
    decoder.row = lambda ids: np.full(VOCAB, np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(EdgerunError, match="NaN"):
        run(fake_engine(decoder))


def test_memory_that_runs_out_is_a_typed_error() -> None:
    decoder = FakeDecoder()
    session = Session(fake_engine(decoder))

    def fail() -> None:
        raise MemoryError("64 MiB")

    decoder.on_layer = fail
    with pytest.raises(DoesNotFitError, match="64 MiB"):
        session.complete("Once")
    decoder.on_layer = lambda: None
    assert session.complete("Once", GREEDY).usage.prompt_tokens == 5


def test_events() -> None:
    events: list[Event] = []
    run(fake_engine(events=events.append), max_tokens=4)
    assert [type(event) for event in events] == [PromptProcessed] + [TokenGenerated] * 4
    assert isinstance(events[0], PromptProcessed)
    assert (events[0].tokens, events[0].reused_tokens) == (5, 0)


def test_cancel_in_the_middle_of_a_prompt() -> None:
    decoder = FakeDecoder(layer_s=0.02)
    engine = fake_engine(decoder, context=4000)
    cancel = CancelToken()
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    session = Session(engine)
    start = time.perf_counter()
    done = session.complete("x" * 3900, cancel=cancel)
    assert time.perf_counter() - start < 0.1 + 0.3
    assert (done.finish_reason, done.text, done.token_ids) == ("cancelled", "", ())
    decoder.layer_s = 0
    assert session.cached_tokens % 256 == 0  # whole steps
    fresh = Session(fake_engine(FakeDecoder())).complete("Once", GREEDY)
    assert last_completion(session.answer(engine.encode("Once"), GREEDY)).text == fresh.text


def test_cancel_while_generating_keeps_what_was_said() -> None:
    cancel = threading.Event()
    said = []
    for chunk in Session(fake_engine()).stream("Once", temperature=0, cancel=cancel):
        said.append(chunk)
        if len(said) == 3:
            cancel.set()
    assert said[-1].finish_reason == "cancelled"
    assert said[-1].completion is not None
    assert len(said[-1].completion.token_ids) == 3


def test_cancelled_before_it_began() -> None:
    cancel = CancelToken()
    cancel.cancel()
    decoder = FakeDecoder()
    done = Session(fake_engine(decoder)).complete("Once", cancel=cancel)
    assert done.finish_reason == "cancelled"
    assert decoder.fed == []


def test_eight_threads_give_what_one_gives() -> None:
    engine = fake_engine(FakeDecoder(layer_s=0.0002))
    prompts = [f"prompt {i} " * (i + 1) for i in range(8)]

    def text(prompt: str) -> str:
        return Session(engine).complete(prompt, temperature=1.0, seed=3, max_tokens=12, ignore_eos=True).text

    expected = [text(prompt) for prompt in prompts]
    results: list[str] = [""] * 8

    def work(i: int) -> None:
        results[i] = text(prompts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_a_long_prompt_lets_others_go_on() -> None:
    decoder = FakeDecoder(layer_s=0.002, forbid=[*range(32), *range(127, VOCAB)])
    engine = fake_engine(decoder, context=8000)
    finished: list[str] = []

    def long() -> None:
        Session(engine).complete("x" * 7000, max_tokens=1)
        finished.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    while not decoder.fed:
        time.sleep(0.001)
    Session(engine).complete("Once", GREEDY, max_tokens=5)
    finished.append("short")
    thread.join()
    assert finished == ["short", "long"]


def test_logits_score_and_embed() -> None:
    decoder = FakeDecoder()
    engine = fake_engine(decoder)
    ids: Sequence[int] = FakeTokenizer().encode("Hello there")
    expected = np.stack([decoder.row(ids[: n + 1]) for n in range(len(ids))])
    np.testing.assert_array_equal(engine.logits(ids), expected)

    score = engine.score("Hello there")
    wide = expected.astype(np.float64)
    logp = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    each = [logp[i, ids[i + 1]] for i in range(len(ids) - 1)]
    assert score.token_ids == tuple(ids)
    assert score.logprobs == pytest.approx(each, abs=1e-4)
    assert score.total == pytest.approx(sum(each), abs=1e-3)
    assert score.perplexity == pytest.approx(np.exp(-np.mean(each)), rel=1e-4)

    mean = expected[:, :8].mean(axis=0)
    np.testing.assert_allclose(engine.embed("Hello there"), mean / np.linalg.norm(mean), rtol=1e-5)


def test_long_scores_go_in_pieces() -> None:
    decoder = FakeDecoder()
    text = "abc" * 250
    score = fake_engine(decoder, context=1000).score(text)
    assert len(score.logprobs) == 750
    assert max(decoder.fed) <= 256
    row = decoder.row(score.token_ids[:600]).astype(np.float64)
    assert score.logprobs[599] == pytest.approx(row[score.token_ids[600]] - np.log(np.exp(row).sum()), abs=1e-4)


def test_without_a_tokenizer_only_logits_work() -> None:
    engine = fake_engine(tokenizer=None, template=None, no_tokenizer="its kind is none")
    assert engine.logits([1, 2]).shape == (2, VOCAB)
    for call in (
        lambda: Session(engine).complete("x"),
        lambda: Session(engine).chat("x"),
        lambda: engine.score("x"),
        lambda: engine.embed("x"),
    ):
        with pytest.raises(UnsupportedError, match="its kind is none"):
            call()


def test_without_a_template_there_is_no_chat() -> None:
    engine = fake_engine(template=None, no_template="it is broken")
    with pytest.raises(UnsupportedError, match="it is broken"):
        Session(engine).chat("x")
    assert Session(engine).complete("x", GREEDY).text
