"""Guesses change how fast an answer comes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.engine import CancelToken, Chunk, Completion, Engine, SamplingParams, Session
from edgerun.engine.drafts import MOST_DRAFTED, Draft
from edgerun.engine.lookup import Lookup, lookup
from edgerun.errors import UsageError
from edgerun.events import Event, TokensDrafted
from edgerun.models.batch import Batch
from engine.fakes import PAGE_BYTES, VOCAB, FakeDecoder, FakeTokenizer, fake_engine
from tests.engine.guessers import Guesser, always_wrong, from_script, guessing, some, take_all
from tests.engine.test_scheduler import ASCII_ONLY, side_by_side

PROMPT = FakeTokenizer().encode("Once upon a time")


@pytest.fixture(autouse=True)
def all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    take_all(monkeypatch)


def ascii_decoder(**more: Any) -> FakeDecoder:
    return FakeDecoder(forbid=ASCII_ONLY, **more)


def answered(engine: Engine, **options: Any) -> tuple[Completion, list[Chunk]]:
    chunks = list(Session(engine).stream(PROMPT, **options))
    done = chunks[-1].completion
    assert done is not None
    return done, chunks


def same(a: Completion, b: Completion) -> bool:
    return all(
        getattr(a, name) == getattr(b, name) for name in ("text", "token_ids", "finish_reason", "usage", "logprobs")
    )


def forbid_the_last(ids: Any, logits: Any) -> Any:
    """A processor that depends on what was chosen before."""
    logits[ids[-1]] = -np.inf
    logits[ids[-3]] += 2
    return logits


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"seed": 5},
    "hot": {"seed": 6, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "penalties": {"seed": 7, "repeat_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "greedy penalties": {"temperature": 0, "repeat_penalty": 2.0, "repeat_last_n": -1},
    "logprobs": {"seed": 8, "logprobs": 3, "repeat_penalty": 1.2},
    "processors": {"seed": 9, "processors": [forbid_the_last]},
    "bias": {"temperature": 0, "logit_bias": {101: 9.0, 102: 9.0}},
}


@pytest.mark.parametrize("right", ["all", "none", "some"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_answer_is_the_same_whoever_guesses(name: str, right: str) -> None:
    options = {"max_tokens": 60, **OPTIONS[name]}
    plain, _ = answered(fake_engine(ascii_decoder()), **options)
    numbers: dict[str, Callable[[int], int]] = {"all": lambda i: 7, "none": lambda i: 0, "some": some(1)}
    decoder, events, made = ascii_decoder(), list[Event](), list[Guesser]()
    guess = from_script(plain.token_ids, len(PROMPT), numbers[right], VOCAB)
    engine = fake_engine(decoder, draft=guessing(guess, made), events=events.append)
    drafted, chunks = answered(engine, **options)
    assert same(plain, drafted)
    assert "".join(chunk.text for chunk in chunks) == plain.text
    assert [token for chunk in chunks for token in chunk.token_ids] == list(plain.token_ids)
    timings, told = drafted.timings, [each for each in events if isinstance(each, TokensDrafted)]
    assert timings.drafted_tokens == sum(each.drafted for each in told) > 0
    assert timings.accepted_tokens == sum(each.accepted for each in told) == sum(d.accepted for d in made[0].judged)
    assert timings.decode_steps + timings.accepted_tokens == 59  # and one token from the prompt
    if right == "all":
        assert timings.decode_steps == 8 and timings.accepted_tokens == 51
    if right == "none":
        assert timings.accepted_tokens == 0
    decoder.pages.check_integrity()


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8, 9, 10])
def test_max_tokens(max_tokens: int) -> None:
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=40)
    decoder = ascii_decoder()
    engine = fake_engine(decoder, draft=guessing(from_script(plain.token_ids, len(PROMPT), lambda i: 7, VOCAB)))
    few, _ = answered(engine, temperature=0, max_tokens=max_tokens)
    assert few.token_ids == plain.token_ids[:max_tokens] and few.finish_reason == "length"
    assert sum(decoder.fed) <= len(PROMPT) + max_tokens - 1, "rows that can be of no use"


def test_a_stop_string_or_the_end_within_what_was_guessed() -> None:
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=40)
    guess = from_script(plain.token_ids, len(PROMPT), lambda i: 7, VOCAB)
    for n in range(1, 20):
        stop = plain.text[n : n + 2]
        want, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=40, stop=[stop])
        got, _ = answered(
            fake_engine(ascii_decoder(), draft=guessing(guess)), temperature=0, max_tokens=40, stop=[stop]
        )
        assert same(want, got) and got.finish_reason == "stop"

    class Ends(FakeDecoder):
        def row(self, ids: Any) -> Any:
            row = super().row(ids)
            row[257] = 1000 if len(ids) == len(PROMPT) + 12 else -1000
            return row

    want, _ = answered(fake_engine(Ends(forbid=[*range(32), *range(127, 256)])), temperature=0)
    assert want.finish_reason == "stop" and len(want.token_ids) == 12
    guess = from_script([*want.token_ids, 257, 65, 66, 67, 68, 69, 70, 71], len(PROMPT), lambda i: 7, VOCAB)
    session = Session(fake_engine(Ends(forbid=[*range(32), *range(127, 256)]), draft=guessing(guess)))
    got = session.complete(PROMPT, temperature=0)
    assert same(want, got)
    assert session.ids == (*PROMPT, *want.token_ids)


def test_the_contexts_end() -> None:
    want, _ = answered(fake_engine(ascii_decoder(), context=40), temperature=0)
    guess = from_script(want.token_ids, len(PROMPT), lambda i: 7, VOCAB)
    got, _ = answered(fake_engine(ascii_decoder(), context=40, draft=guessing(guess)), temperature=0)
    assert same(want, got) and got.finish_reason == "length" and got.timings.accepted_tokens > 10


@pytest.mark.parametrize("window", [0, 8])
def test_a_session_goes_on_after_guesses(window: int) -> None:
    """What was guessed right is held, what was wrong is not, also where a window forgets."""
    plain = Session(fake_engine(ascii_decoder()))
    decoder = ascii_decoder(window=window)
    answer = plain.complete(PROMPT, temperature=0, max_tokens=30).token_ids
    drafted = Session(fake_engine(decoder, draft=guessing(from_script(answer, len(PROMPT), some(3), VOCAB))))
    drafted.complete(PROMPT, temperature=0, max_tokens=30)
    assert drafted.ids == plain.ids and drafted.cached_tokens == plain.cached_tokens
    decoder.fed.clear()
    want = plain.complete("more", temperature=0, max_tokens=5)
    got = drafted.complete("more", temperature=0, max_tokens=5)
    assert same(want, got)
    assert decoder.fed[0] == 5, "four new tokens and the one chosen last"


def test_a_stream_that_is_closed_and_one_that_is_cancelled() -> None:
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=60)
    make = guessing(from_script(plain.token_ids, len(PROMPT), some(4), VOCAB))
    session = Session(fake_engine(ascii_decoder(), draft=make))
    stream = session.stream(PROMPT, temperature=0, max_tokens=60)
    said = [next(stream).token_ids for _ in range(10)]
    stream.close()  # type: ignore[attr-defined]
    produced = tuple(token for each in said for token in each)
    assert produced == plain.token_ids[:10] and session.ids == (*PROMPT, *produced)
    cancel = CancelToken()
    stream = session.stream([], temperature=0, max_tokens=60, cancel=cancel)
    next(stream)
    cancel.cancel()
    last = list(stream)[-1].completion
    assert last is not None and last.finish_reason == "cancelled"
    assert last.token_ids == plain.token_ids[10 : 10 + len(last.token_ids)]


def test_several_together_each_with_guesses_of_its_own() -> None:
    prompts = ["one", "two", "three", "four"]
    params = [SamplingParams(seed=i, max_tokens=80, temperature=0 if i % 2 else 1.0) for i in range(4)]

    def text(engine: Engine, i: int) -> str:
        return Session(engine).complete(prompts[i], params[i]).text

    want = [text(fake_engine(ascii_decoder(), context=2000), i) for i in range(4)]
    decoder = ascii_decoder(layer_s=0.0005)
    plain = FakeDecoder(forbid=ASCII_ONLY)

    def guess(ids: Any, n: int) -> list[int]:
        so_far = list(ids)
        for _ in range(n):
            so_far.append(int(plain.row(so_far).argmax()))
        if len(ids) % 3 == 0:
            so_far[-1] = (so_far[-1] + 1) % VOCAB
        return so_far[len(ids) :]

    engine = fake_engine(decoder, context=2000, draft=guessing(guess))
    got = side_by_side(*[lambda i=i: text(engine, i) for i in range(4)])
    assert got == want
    assert max(len(batch) for batch in decoder.batches) > 1, "they were never together"
    assert any(sum(batch) > len(batch) > 1 for batch in decoder.batches), "and never with guesses"
    decoder.pages.check_integrity()
    engine.close(lambda: None)


def test_no_pages_are_taken_from_others_for_guesses() -> None:
    """One page is all that there is for one sequence: 256 positions, and guesses beyond them find no room."""
    want, _ = answered(fake_engine(ascii_decoder(), context=600), temperature=0, max_tokens=256 - len(PROMPT))
    decoder = ascii_decoder(pages=1)
    guess = from_script([*want.token_ids, *[65] * 9], len(PROMPT), lambda i: 7, VOCAB)
    got, _ = answered(
        fake_engine(decoder, context=600, draft=guessing(guess)), temperature=0, max_tokens=256 - len(PROMPT)
    )
    assert same(want, got)
    assert decoder.pages.ledger.limit_bytes == PAGE_BYTES


def test_a_step_that_fails_leaves_no_guess_behind() -> None:
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=60)
    decoder = ascii_decoder()
    session = Session(fake_engine(decoder, draft=guessing(from_script(plain.token_ids, len(PROMPT), some(5), VOCAB))))
    steps = []

    def dies(batch: Batch) -> None:
        steps.append(batch)
        if len(steps) == 6:
            raise OSError("the disk died")

    decoder.on_step = dies
    with pytest.raises(OSError, match="died"):
        session.complete(PROMPT, temperature=0, max_tokens=60)
    held = session.cached_tokens
    assert held > len(PROMPT) and tuple([*PROMPT, *plain.token_ids][:held]) == session.ids[:held]
    decoder.on_step = lambda batch: None
    assert session.answer is not None
    again = [chunk for chunk in session.answer(PROMPT, SamplingParams(temperature=0, max_tokens=60))][-1].completion
    assert again is not None and again.token_ids == plain.token_ids


def test_guesses_that_fail_cost_only_the_guesses() -> None:
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=10)

    def refuses(ids: Any, n: int) -> list[int]:
        raise UsageError("no guesses today")

    got, _ = answered(fake_engine(ascii_decoder(), draft=guessing(refuses)), temperature=0, max_tokens=10)
    assert same(plain, got) and got.timings.drafted_tokens == 0


def test_a_greedy_adversary_is_never_right() -> None:
    decoder = ascii_decoder()
    wrong = always_wrong(lambda ids: int(decoder.row(ids).argmax()), VOCAB)
    plain, _ = answered(fake_engine(ascii_decoder()), temperature=0, max_tokens=30)
    got, _ = answered(fake_engine(decoder, draft=guessing(wrong)), temperature=0, max_tokens=30)
    assert same(plain, got) and got.timings.accepted_tokens == 0 and got.timings.drafted_tokens > 100


def test_sampling_with_guesses_keeps_the_distribution() -> None:
    """Chi-square of what follows, against the model's probabilities; guesses are of the likeliest token, of an unlikely
    one, and none."""
    names = [97, 98, 99, 100, 101, 102]
    logits = np.array([2.0, 1.0, 0.5, 0.0, -0.5, -1.0], np.float32)
    p = np.exp(logits) / np.exp(logits).sum()

    class Steady(FakeDecoder):
        def row(self, ids: Any) -> Any:
            row = np.full(VOCAB, -np.inf, np.float32)
            row[names] = logits
            return row

    for guess in (lambda ids, n: [97] * n, lambda ids, n: [102] * n, lambda ids, n: []):
        engine = fake_engine(Steady(), context=4000, draft=guessing(guess))
        done = Session(engine).complete("x", seed=11, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=3000)
        counts = np.array([done.token_ids.count(name) for name in names])
        assert counts.sum() == 3000
        assert ((counts - 3000 * p) ** 2 / (3000 * p)).sum() < 20.5, counts  # 0.1 % of right ones, 5 degrees of freedom
        pairs = np.array(
            [sum(a == b == name for a, b in zip(done.token_ids, done.token_ids[1:], strict=False)) for name in names]
        )
        assert (np.abs(pairs - 2999 * p * p) < 5 * np.sqrt(2999 * p * p) + 3).all(), "neighbours depend on each other"
        share = done.timings.accepted_tokens
        assert (share > 0) == bool(guess([], 1))


# -- lookup ------------------------------------------------------------------------------------------------------


def guesses(ids: list[int], n: int = MOST_DRAFTED) -> list[int]:
    drafter = Lookup()
    return list(drafter.propose(ids, n)) if drafter.outlook(ids, n).most else []


def test_lookup_prefers_the_longest_match_then_the_latest() -> None:
    assert guesses([1, 2, 3, 9, 9, 4, 2, 3, 8, 8, 1, 2, 3], 2) == [9, 9]
    assert guesses([5, 2, 3, 9, 9, 4, 2, 3, 8, 8, 1, 2, 3], 2) == [8, 8]
    assert guesses([1, 2, 3, 4, 5], 2) == []
    assert guesses([], 2) == guesses([1], 2) == guesses([1, 1], 2) == []
    assert guesses([1, 2, 3, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1], "what repeats itself goes on"
    assert guesses([7, 7, 7], 3) == [7, 7, 7]


def test_lookup_as_a_search_would_have_it() -> None:
    """Against every place looked at, on random texts of few words, growing token by token."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        ids: list[int] = []
        drafter = Lookup()
        for token in rng.integers(0, 3, 60).tolist():
            ids.append(token)
            offered = drafter.outlook(ids, 7).most
            lengths = {}
            for place in range(2, len(ids)):
                length = 0
                while length < min(place, 12) and ids[place - 1 - length] == ids[-1 - length]:
                    length += 1
                lengths[place] = length
            best = max(lengths.values(), default=0)
            assert bool(offered) == (best >= 2)
            if offered:
                recent = [place for place, length in lengths.items() if length >= 2][-16:]
                best = max(lengths[place] for place in recent)
                place = max(place for place in recent if lengths[place] == best)
                whole = list(ids)
                for i in range(7):
                    whole.append(whole[place + i])
                assert list(drafter.propose(ids, 7)) == whole[len(ids) :]


def test_lookup_begins_anew_with_another_list() -> None:
    drafter = Lookup()
    assert drafter.outlook([1, 2, 3, 1, 2], 7).most and drafter.outlook([4, 5, 6, 1, 2], 7).most == 0


def test_an_extraction_takes_fewer_steps() -> None:
    """A model that repeats its prompt."""
    text = FakeTokenizer().encode("The lighthouse keeper had a dog, two lamps and a very long ladder to paint.")

    class Repeats(FakeDecoder):
        def row(self, ids: Any) -> Any:
            row = np.zeros(VOCAB, np.float32)
            row[ids[1 + (len(ids) - 1) % (len(text) - 1)]] = 1
            return row

    plain = Session(fake_engine(Repeats())).complete(text, temperature=0, max_tokens=70)
    got = Session(fake_engine(Repeats(), draft=lookup)).complete(text, temperature=0, max_tokens=70)
    assert same(plain, got) and plain.text == FakeTokenizer().decode(text[1:71])
    assert got.timings.decode_steps < 20 and plain.timings.decode_steps == 69


def test_what_is_learned_of_guesses() -> None:
    drafter = Guesser(lambda ids, n: [])
    first = drafter.outlook([1], 7).rate
    drafter.learn(Draft([1] * 7, 0, 7))
    high = drafter.outlook([1], 7).rate
    for _ in range(20):
        drafter.learn(Draft([1] * 7, 0, 0))
    low = drafter.outlook([1], 7).rate
    for _ in range(300):
        drafter.skipped()
    assert low < first / 2 < first < high < 1
    assert drafter.outlook([1], 7).rate == pytest.approx(first, abs=0.01), "what is long ago is forgotten"
