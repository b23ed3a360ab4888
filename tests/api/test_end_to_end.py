"""The whole way from a file to text, on a tiny random model."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_model

from edgerun import LLM, CancelToken
from edgerun.device import MemoryLimits
from edgerun.errors import ContextLengthError, DoesNotFitError, NotFoundError, UnsupportedError, UsageError
from edgerun.events import Event, PromptProcessed, TokenGenerated

KERNELS = os.environ.get("EDGERUN_KERNELS", "auto")
PROMPT = "the man was in the house and the"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return make_tiny_model(folder / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, kernels=KERNELS) as llm:
        yield llm


def test_greedy_text_is_the_same_each_time(llm: LLM) -> None:
    done = llm.complete(PROMPT, temperature=0, max_tokens=30)
    assert len(done.token_ids) == 30
    assert done.text.isascii()
    assert llm.complete(PROMPT, temperature=0, max_tokens=30).text == done.text
    assert llm.detokenize(done.token_ids) == done.text


def test_every_kernel_gives_the_same_text(llm: LLM, path: Path) -> None:
    with LLM(path, kernels="reference") as reference:
        ids = llm.tokenize(PROMPT)
        expected = reference.logits(ids)
        np.testing.assert_allclose(llm.logits(ids), expected, rtol=0, atol=2e-3 * np.abs(expected).max())
        for options in ({"temperature": 0}, {"temperature": 0.9, "seed": 4}):
            said = llm.complete(PROMPT, max_tokens=12, **options)  # type: ignore[arg-type]
            again = reference.complete(PROMPT, max_tokens=12, **options)  # type: ignore[arg-type]
            assert said.text == again.text


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_other_families(folder: Path, arch: str) -> None:
    path = make_tiny_model(folder / f"{arch}.gguf", arch=arch)
    with LLM(path, kernels=KERNELS) as llm:
        assert len(llm.chat("Hi", temperature=0, max_tokens=5).token_ids) == 5


def test_logits_do_not_depend_on_how_the_prompt_is_divided(llm: LLM) -> None:
    ids = llm.tokenize(PROMPT * 24)[:300]
    whole = llm.logits(ids)
    assert whole.shape == (300, llm.vocab_size)
    assert whole.dtype == np.float32
    for n in (1, 7, 255, 256, 257):
        part = llm.logits(ids[:n])
        np.testing.assert_allclose(part, whole[:n], rtol=0, atol=1e-3 * np.abs(whole).max())


def test_reused_prefixes_change_nothing(llm: LLM, path: Path) -> None:
    session = llm.session()
    session.complete(PROMPT + " house by the sea", temperature=0, max_tokens=8)
    session.rewind(len(session.ids) - len(llm.tokenize(PROMPT)))
    reused = session.complete(" end of the", temperature=0, max_tokens=20)
    assert reused.usage.reused_tokens > 5
    with LLM(path, kernels=KERNELS) as other:
        ids = [*llm.tokenize(PROMPT), *llm.tokenize(" end of the", add_special=False)]
        assert other.complete(ids, temperature=0, max_tokens=20).token_ids == reused.token_ids


def test_forks_go_their_own_ways(llm: LLM) -> None:
    session = llm.session()
    session.complete(PROMPT, temperature=0, max_tokens=4)
    twin = session.fork()
    one = session.complete(" sea", temperature=0, max_tokens=10)
    two = twin.complete(" sea", temperature=0, max_tokens=10)
    assert one.token_ids == two.token_ids
    assert twin.complete(" and", temperature=0, max_tokens=4).token_ids


def test_chat(llm: LLM) -> None:
    session = llm.session([{"role": "system", "content": "Be brief."}])
    first = session.chat("Hello", temperature=0, max_tokens=10)
    second = session.chat("And then?", temperature=0, max_tokens=10)
    assert second.usage.reused_tokens >= first.usage.prompt_tokens
    fresh = llm.session(session.messages[:3])
    assert fresh.chat("And then?", temperature=0, max_tokens=10).text == second.text


def test_score_follows_from_logits(llm: LLM) -> None:
    score = llm.score(PROMPT)
    logits = llm.logits(score.token_ids).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = [logp[i, token] for i, token in enumerate(score.token_ids[1:])]
    assert score.logprobs == pytest.approx(expected, abs=1e-2)


def test_embeddings(llm: LLM) -> None:
    vectors = llm.embed([PROMPT, PROMPT, "something else " * 30])
    assert vectors.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert float(vectors[0] @ vectors[2]) < 0.999


def test_eight_threads(llm: LLM) -> None:
    prompts = [f"{PROMPT} {'and the ' * i}" for i in range(8)]
    expected = [llm.complete(p, temperature=0, max_tokens=10).token_ids for p in prompts]
    results: dict[int, object] = {}

    def work(i: int) -> None:
        results[i] = llm.complete(prompts[i], temperature=0, max_tokens=10).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(8)] == expected


def test_cancel_during_a_prompt(folder: Path) -> None:
    path = make_tiny_model(folder / "long.gguf", context=65536)
    with LLM(path, kernels=KERNELS, context=65536) as llm:
        ids = [7] * 65000
        llm.complete(ids[:600], max_tokens=1)  # whatever is compiled at first use is
        cancel = CancelToken()
        asked: list[float] = []

        def ask() -> None:
            asked.append(time.perf_counter())
            cancel.cancel()

        threading.Timer(0.3, ask).start()
        done = llm.complete(ids, cancel=cancel, max_tokens=1)
        assert asked, "the prompt was through before it could be cancelled"
        assert time.perf_counter() - asked[0] < 0.3
        assert done.finish_reason == "cancelled"
        assert llm.complete(PROMPT, max_tokens=3).usage.completion_tokens == 3


@pytest.fixture
def interrupts() -> Iterator[None]:
    """A process that a shell started in the background ignores Ctrl-C, and Python with it. And Python drops a Ctrl-C
    that arrives while it clears up an object: what other tests left is cleared up before, not meanwhile."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_during_a_prompt(folder: Path) -> None:
    path = make_tiny_model(folder / "interrupted.gguf", context=65536)
    with LLM(path, kernels=KERNELS, context=65536) as llm:
        session = llm.session()
        expected = llm.complete(PROMPT, temperature=0, max_tokens=10).text
        for delay_s in (0.03, 0.1, 0.17):
            timer = threading.Timer(delay_s, _thread.interrupt_main)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                session.complete([7] * 65000, max_tokens=1)
            timer.join()
            assert session.cached_tokens < 65000
            session.rewind(len(session.ids))
            assert session.complete(PROMPT, temperature=0, max_tokens=10).text == expected
            assert llm.complete(PROMPT, temperature=0, max_tokens=10).text == expected
            session.clear()


def test_context_lengths(llm: LLM, path: Path) -> None:
    assert llm.context == 512
    with pytest.raises(ContextLengthError, match=r"513 tokens.*context 512"):
        llm.complete([1] * 513)
    done = llm.complete([1] * 510, temperature=0)
    assert (len(done.token_ids), done.finish_reason) == (2, "length")
    with pytest.raises(UsageError, match="512"):
        LLM(path, context=513)
    with LLM(path, context=16, kernels="reference") as small, pytest.raises(ContextLengthError):
        small.logits([1] * 17)


def test_a_model_without_vocabulary_still_has_logits(folder: Path) -> None:
    path = make_tiny_model(folder / "bare.gguf", tokenizer=False)
    with LLM(path, kernels=KERNELS) as llm:
        assert llm.logits([1, 2, 3]).shape == (3, llm.vocab_size)
        with pytest.raises(UnsupportedError, match="tokenizer"):
            llm.complete("text")


def test_memory_below_the_floor_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DoesNotFitError, match=r"tiny\.gguf needs at least .* may have 1 MiB \(--memory\)"):
        LLM(path, memory="1M")
    monkeypatch.setattr("edgerun.api.weights.memory_limits", lambda: MemoryLimits(1 << 30, 1 << 20))
    with pytest.raises(DoesNotFitError, match=r"tiny\.gguf needs at least .*what is available"):
        LLM(path)
    for wrong in ("much", 0, -5, True, 1.5):
        with pytest.raises(UsageError, match="size"):
            LLM(path, memory=wrong)


def test_a_directory_with_one_model(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "only.gguf")
    with LLM(tmp_path, kernels="reference") as llm:
        assert llm.name == "only"


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.gguf"):
        LLM("nothing.gguf")


def test_bad_options(path: Path) -> None:
    for options in ({"threads": 0}, {"threads": "many"}, {"kernels": "magic"}, {"context": 0}):
        with pytest.raises(UsageError):
            LLM(path, **options)  # type: ignore[arg-type]


def test_events(path: Path) -> None:
    events: list[Event] = []
    with LLM(path, kernels=KERNELS, events=events.append) as llm:
        llm.complete(PROMPT, max_tokens=3)
    assert sum(isinstance(event, PromptProcessed) for event in events) == 1
    assert sum(isinstance(event, TokenGenerated) for event in events) == 3


def test_threads_are_given_to_the_kernels(path: Path) -> None:
    with LLM(path, kernels=KERNELS, threads=1) as llm:
        assert len(llm.complete(PROMPT, max_tokens=3).token_ids) == 3
