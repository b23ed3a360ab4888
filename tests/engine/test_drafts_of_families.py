"""Answers with guesses are those without, byte for byte, for every family: what a rejected guess wrote is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgerun.engine import Engine, SamplingParams, Session
from edgerun.engine.lookup import lookup
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import Kernels
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, WeightStore
from engine.fakes import FakeTokenizer
from tests.engine.guessers import from_script, guessing, some, take_all
from tests.models.instances import INSTANCES, VOCAB, write

NAMES = (
    "llama",
    "qwen2",
    "qwen3moe",
    "gemma2",
    "gemma3",
    "phi3-longrope",
    "olmoe",
    "relu-Q8_0",
    "smallthinker",
    "lfm2",
    "qwen35",
)
PROMPT = np.random.default_rng(7).integers(0, VOCAB, 20).tolist()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(name: str, path: Path, kernels: Kernels, stack: ExitStack, *, streamed: bool = False) -> Decoder:
    gguf = stack.enter_context(open_gguf(write(INSTANCES[name], path)))
    spec = load_spec(gguf)
    store: WeightStore
    if streamed:
        store = StreamedExpertStore(gguf, spec, kernels, slots=8, wave_tokens=32)
    else:
        store = ResidentStore(gguf, spec, kernels)
    stack.callback(store.close)
    return Decoder(spec, store, kernels, context=600)


@pytest.mark.parametrize(
    ("name", "streamed"), [*((name, False) for name in NAMES), ("qwen3moe", True), ("lfm2moe", True)]
)
def test_every_family(
    name: str, streamed: bool, tmp_path: Path, kernels: Kernels, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_all(monkeypatch)
    decoder = opened(name, tmp_path / "model.gguf", kernels, stack, streamed=streamed)
    for params in (
        SamplingParams(temperature=0, max_tokens=70, logprobs=2),
        SamplingParams(seed=3, max_tokens=70, logprobs=2, repeat_penalty=1.2),
    ):
        want = Session(Engine(decoder, FakeTokenizer(), context=600)).complete(PROMPT, params)
        script = from_script(want.token_ids, len(PROMPT), some(9), VOCAB)
        for draft in (guessing(script), lookup):
            session = Session(Engine(decoder, FakeTokenizer(), context=600, draft=draft))
            got = session.complete(PROMPT, params)
            assert got.token_ids == want.token_ids and got.logprobs == want.logprobs
            assert got.timings.decode_steps + got.timings.accepted_tokens == 69
            assert got.timings.drafted_tokens > 0 or draft is lookup  # such a model repeats itself, or not
    decoder.pages.check_integrity()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_over_pages(
    name: str, tmp_path: Path, kernels: Kernels, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejected guesses may be all that a new page holds, and a window lets go of pages meanwhile."""
    take_all(monkeypatch)
    decoder = opened(name, tmp_path / "model.gguf", kernels, stack)
    prompt, params = (PROMPT * 30)[:500], SamplingParams(temperature=0, max_tokens=40)
    want = Session(Engine(decoder, FakeTokenizer(), context=600)).complete(prompt, params)
    script = from_script(want.token_ids, len(prompt), some(5), VOCAB)
    session = Session(Engine(decoder, FakeTokenizer(), context=600, draft=guessing(script)))
    assert session.complete(prompt, params).token_ids == want.token_ids
    assert session.cached_tokens == 539
    decoder.pages.check_integrity()
