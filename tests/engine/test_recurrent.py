"""Sessions of a model with recurrent states: whatever was kept of a text, an answer is that of a fresh session, and of
what was kept some is used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgerun.engine import Completion, Engine, SamplingParams, Session
from edgerun.engine.context import Context
from edgerun.engine.generate import generate
from edgerun.engine.session import last_completion
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import Kernels
from edgerun.kv import KvLedger, sequence_states
from edgerun.models import Decoder, load_spec
from edgerun.models.holdings import kv_bytes, state_bytes
from edgerun.weights import ResidentStore
from edgerun.weights.identity import ModelIdentity
from engine.fakes import FakeTokenizer
from tests.engine.guessers import from_script, guessing, some, take_all
from tests.models.instances import INSTANCES, VOCAB, write

NAMES = ("lfm2", "qwen35")
CONTEXT = 900
TEXT = np.random.default_rng(3).integers(0, VOCAB, 700).tolist()
PARAMS = SamplingParams(temperature=0, max_tokens=12, logprobs=1)

Open = Callable[..., Engine]


@pytest.fixture(params=NAMES)
def engine_of(request: pytest.FixtureRequest, tmp_path: Path, kernels: Kernels) -> Iterator[Open]:
    with ExitStack() as stack:
        gguf = stack.enter_context(open_gguf(write(INSTANCES[request.param], tmp_path / "model.gguf")))
        spec = load_spec(gguf)
        store = ResidentStore(gguf, spec, kernels)
        stack.callback(store.close)
        one = kv_bytes(spec, CONTEXT) + state_bytes(spec, CONTEXT)

        def opened(contexts: float = 20.0, **more: object) -> Engine:
            """On a decoder of its own, whose sequences may take as much as so many whole contexts."""
            decoder = Decoder(spec, store, kernels, context=CONTEXT, kv_ledger=KvLedger(int(contexts * one)))
            identity = ModelIdentity("a file", "a header")
            return Engine(decoder, FakeTokenizer(), context=CONTEXT, identity=lambda: identity, **more)  # type: ignore[arg-type]

        yield opened


def answer(engine: Engine, context: Context, ids: list[int]) -> Completion:
    return last_completion(generate(engine, context, ids, PARAMS))


def fresh(engine_of: Open, ids: list[int]) -> Completion:
    engine = engine_of()
    return answer(engine, engine.new_context(), ids)


def same(one: Completion, other: Completion) -> bool:
    return one.token_ids == other.token_ids and one.logprobs == other.logprobs


def test_the_same_prompt_again_and_others_that_begin_like_it(engine_of: Open) -> None:
    engine = engine_of()
    context = engine.new_context()
    first = answer(engine, context, TEXT[:600])
    again = answer(engine, context, TEXT[:600])
    assert same(again, first) and again.usage.reused_tokens == 599
    for n, least in ((599, 599), (550, 512), (500, 256), (200, 0)):
        prompt = [*TEXT[:n], *TEXT[300:320]]
        got = answer(engine, context, prompt)
        assert same(got, fresh(engine_of, prompt)), n
        assert least <= got.usage.reused_tokens <= n, n
    engine.decoder.pages.check_integrity()


def test_contexts_that_begin_alike(engine_of: Open) -> None:
    engine = engine_of()
    one, two, three = (engine.new_context() for _ in range(3))
    first, second = (answer(engine, each, TEXT[:600]) for each in (one, two))
    assert same(first, second) and second.usage.reused_tokens == 599
    prompt = [*TEXT[:590], *TEXT[10:40]]
    third = answer(engine, three, prompt)
    assert same(third, fresh(engine_of, prompt)) and third.usage.reused_tokens == 512
    engine.decoder.pages.check_integrity()


def test_turns_forks_and_cuts(engine_of: Open) -> None:
    engine = engine_of()
    context = engine.new_context()
    said = answer(engine, context, TEXT[:300]).token_ids
    turn = [*TEXT[:300], *said, *TEXT[400:430]]
    got = answer(engine, context, turn)
    assert same(got, fresh(engine_of, turn)) and got.usage.reused_tokens == 300 + len(said) - 1
    twin = context.fork()
    for each, more in ((context, TEXT[500:520]), (twin, TEXT[520:560])):
        prompt = [*each.tokens, *more]
        got = answer(engine, each, prompt)
        assert same(got, fresh(engine_of, prompt)) and got.usage.reused_tokens > 340
    twin.truncate(len(twin) - 25)
    assert len(twin) > 300
    prompt = [*twin.tokens, 7, 8, 9]
    assert same(answer(engine, twin, prompt), fresh(engine_of, prompt))
    edited = [*turn[:-20], *TEXT[600:615]]  # the last message, once more
    got = answer(engine, context, edited)
    assert same(got, fresh(engine_of, edited)) and got.usage.reused_tokens >= 299  # of the first prompt at least
    engine.decoder.pages.check_integrity()


def test_from_a_file(engine_of: Open, tmp_path: Path) -> None:
    session = Session(engine_of())
    session.complete(TEXT[:300], PARAMS)
    session.save(tmp_path / "chat")
    loaded = Session.load(engine_of(), tmp_path / "chat")
    assert loaded.cached_tokens == session.cached_tokens
    before, prompt = session.ids, TEXT[:9]
    one, two = (each.complete(prompt, PARAMS) for each in (session, loaded))
    assert same(one, two) and two.usage.reused_tokens == one.usage.reused_tokens > 300
    whole = fresh(engine_of, [*before, *prompt])
    assert same(one, whole)


def test_with_hardly_any_room_others_lose_their_pages_and_go_on(engine_of: Open) -> None:
    engine = engine_of(contexts=1.3)
    prompts = [[*TEXT[i * 90 :][:260], i] for i in range(4)]
    streams = [Session(engine).stream(prompt, PARAMS) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(40):
        for stream, ids in zip(streams, found, strict=True):
            for chunk in islice(stream, 1):
                ids.extend(chunk.token_ids)
    for prompt, ids in zip(prompts, found, strict=True):
        assert tuple(ids) == fresh(engine_of, prompt).token_ids
    engine.decoder.pages.check_integrity()


@pytest.mark.parametrize("small", [True, False], ids=["a state of each row", "from where the step began"])
def test_wrong_guesses(engine_of: Open, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """What a rejected guess wrote is forgotten; states that are too large to be kept of each row are computed again."""
    take_all(monkeypatch)
    if not small:
        monkeypatch.setattr(sequence_states, "SMALL_BYTES", 0)
    params = SamplingParams(temperature=0, max_tokens=60, logprobs=1)
    want = Session(engine_of()).complete(TEXT[:250], params)
    session = Session(engine_of(draft=guessing(from_script(want.token_ids, 250, some(9), VOCAB))))
    got = session.complete(TEXT[:250], params)
    assert same(got, want)
    assert 0 < got.timings.accepted_tokens < got.timings.drafted_tokens
    session._engine.decoder.pages.check_integrity()
