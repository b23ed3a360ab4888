"""LLM over a decoder whose every answer is known."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from engine.fakes import BOS, VOCAB, FakeDecoder, fake_engine
from tiny_model import make_tiny_model

import edgerun
from edgerun.api import LLM, CancelToken, SamplingParams
from edgerun.api.loading import choose_context, choose_step_tokens, find_model
from edgerun.errors import Cancelled, NotFoundError, TemplateError, UsageError
from edgerun.models.families import FAMILIES
from edgerun.models.spec import ModelSpec

ASCII_ONLY = [*range(32), *range(127, VOCAB)]


@pytest.fixture
def llm() -> LLM:
    return LLM.from_engine(fake_engine())


def test_complete_chat_and_stream_agree(llm: LLM) -> None:
    whole = llm.complete("Once", max_tokens=6, temperature=0).text
    assert "".join(c.text for c in llm.stream("Once", max_tokens=6, temperature=0)) == whole
    messages = [{"role": "user", "content": "Hi"}]
    said = llm.chat(messages, max_tokens=6, temperature=0).text
    assert llm.chat("Hi", max_tokens=6, temperature=0).text == said
    assert "".join(c.text for c in llm.stream(messages, max_tokens=6, temperature=0)) == said
    assert llm.complete(llm.tokenize("Once"), max_tokens=6, temperature=0).text == whole


def test_options_go_before_params(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    assert len(llm.complete("Once", params).token_ids) == 3
    assert len(llm.complete("Once", params, max_tokens=5).token_ids) == 5
    with pytest.raises(UsageError, match="max_token"):
        llm.complete("Once", max_token=3)  # type: ignore[call-arg]


def test_calls_reuse_the_call_before() -> None:
    decoder = FakeDecoder(forbid=ASCII_ONLY)
    llm = LLM.from_engine(fake_engine(decoder))
    llm.complete("Once upon a time", max_tokens=1)
    done = llm.complete("Once upon a day", max_tokens=4, temperature=0)
    assert done.usage.reused_tokens == 13
    assert done.text == LLM.from_engine(fake_engine()).complete("Once upon a day", max_tokens=4, temperature=0).text


def test_eight_threads_share_one_llm() -> None:
    llm = LLM.from_engine(fake_engine(FakeDecoder(layer_s=0.0001, forbid=ASCII_ONLY)))
    expected = [llm.complete(f"text {i}", temperature=1.0, seed=i, max_tokens=10).text for i in range(8)]
    results: dict[int, list[str]] = {i: [] for i in range(8)}

    def work(i: int) -> None:
        for _ in range(4):
            results[i].append(llm.complete(f"text {i}", temperature=1.0, seed=i, max_tokens=10).text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [expected[i]] * 4 for i in range(8)}


def test_tokenize_and_detokenize(llm: LLM) -> None:
    assert llm.tokenize("aé") == [BOS, *"aé".encode()]
    assert llm.tokenize("<|im_end|>", add_special=False, parse_special=False) == list(b"<|im_end|>")
    assert llm.detokenize(llm.tokenize("aé"), skip_special=True) == "aé"
    with pytest.raises(UsageError, match="vocabulary"):
        llm.detokenize([VOCAB])


def test_embed_score_logits() -> None:
    llm = LLM.from_engine(fake_engine(FakeDecoder()))
    vectors = llm.embed(["one", "two"])
    assert vectors.shape == (2, 8)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(llm.embed("two")[0], vectors[1])
    assert len(llm.score("one").logprobs) == 3
    assert llm.logits([1, 2, 3]).shape == (3, VOCAB)
    with pytest.raises(UsageError, match="at least one text"):
        llm.embed([])


def test_cancelled_logits_raise() -> None:
    cancel = CancelToken()
    cancel.cancel()
    llm = LLM.from_engine(fake_engine())
    with pytest.raises(edgerun.Cancelled):
        llm.logits([1, 2], cancel=cancel)
    with pytest.raises(edgerun.Cancelled):
        llm.score("one", cancel=cancel)


def test_session_is_independent_of_calls(llm: LLM) -> None:
    session = llm.session([{"role": "system", "content": "Be brief."}])
    one = session.chat("Hi", temperature=0, max_tokens=3)
    llm.complete("something else", max_tokens=3)
    two = session.chat("And?", temperature=0, max_tokens=3)
    assert two.usage.reused_tokens >= one.usage.prompt_tokens


def test_closed() -> None:
    released = []
    llm = LLM.from_engine(fake_engine(), release=lambda: released.append(True))
    with llm:
        pass
    llm.close()
    assert released == [True]
    with pytest.raises(UsageError, match="closed"):
        llm.complete("x")


def test_closing_ends_what_still_runs() -> None:
    llm = LLM.from_engine(fake_engine())
    session, stream = llm.session(), llm.stream("Once")
    next(stream)
    llm.close()
    with pytest.raises(UsageError, match="closed"):
        list(stream)
    with pytest.raises(UsageError, match="closed"):
        session.complete("Once")


def test_unknown_options_raise() -> None:
    with pytest.raises(UsageError, match="n_gpu_layers.*threads"):
        LLM("x.gguf", n_gpu_layers=3)  # type: ignore[call-arg]


def test_a_path_that_is_not_there() -> None:
    from pathlib import Path

    path = Path("no/such.gguf")
    assert find_model(path) == path
    with pytest.raises(NotFoundError):
        LLM(path)


def _made_for(trained: int) -> ModelSpec:
    return ModelSpec("a", FAMILIES["llama"], (), 64, 96, trained, 1e-5)


@pytest.mark.parametrize(
    ("asked", "trained", "metadata", "expected"),
    [
        (None, 512, {}, 512),
        (None, 131072, {}, 4096),
        (131072, 131072, {}, 131072),
        (1, 512, {}, 1),
        (
            131072,
            32768,
            {"a.rope.scaling.factor": 4.0, "a.rope.scaling.original_context_length": 32768},
            131072,
        ),
    ],
)
def test_choice_of_context(asked: int | None, trained: int, metadata: dict[str, float], expected: int) -> None:
    assert choose_context(asked, _made_for(trained), metadata) == expected


def test_a_context_that_a_window_makes_endless() -> None:
    assert choose_context(None, _made_for(512), {}, endless=True) > 1_000_000
    assert choose_context(4000, _made_for(512), {}, endless=True) == 4000


def test_a_context_beyond_what_the_model_was_made_for() -> None:
    with pytest.raises(UsageError, match="context"):
        choose_context(513, _made_for(512), {})


@pytest.mark.parametrize(("rows", "expected"), [(100, 256), (20_000, 128), (1 << 20, 64)])
def test_large_layers_take_small_steps(rows: int, expected: int) -> None:
    @dataclass(frozen=True)
    class Info:
        shape: tuple[int, int]

    tensors = {
        "blk.0.w": Info((rows, 16384)),
        "blk.1.w": Info((rows, 8192)),
        "output.weight": Info((1 << 30, 1)),
    }
    assert choose_step_tokens(tensors, 2) == expected  # type: ignore[arg-type]


def test_everything_exported_is_there() -> None:
    for name in edgerun.__all__:
        assert getattr(edgerun, name) is not None
    with pytest.raises(AttributeError, match="LLMs"):
        edgerun.LLMs  # noqa: B018


def test_importing_is_light() -> None:
    code = "import sys, edgerun; print(*sorted(m for m in sys.modules if not m.startswith('_')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "numpy",
        "numba",
        "llvmlite",
        "tokenizers",
        "jinja2",
        "huggingface_hub",
        "rich",
        "psutil",
        "asyncio",
    }
    assert not heavy & set(loaded)


def test_the_api_does_not_load_what_a_model_needs() -> None:
    code = "import sys; from edgerun import LLM; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numba", "llvmlite", "tokenizers", "jinja2", "huggingface_hub", "rich"} & set(loaded)


def test_a_hostile_template_ends_in_an_error_that_names_it_and_the_model_goes_on(tmp_path: Path) -> None:
    source = (
        "{% if messages[0].content == 'time' %}{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}"
        "{% endfor %}{% endif %}{{ 'x' * 10**10 }}"
    )
    before = set(psutil.Process().children())
    with LLM(make_tiny_model(tmp_path / "hostile.gguf", template=source, name="Hostile")) as llm:
        session = llm.session()
        cancel = CancelToken()
        threading.Timer(0.2, cancel.cancel).start()
        with pytest.raises(Cancelled):
            session.chat("time", max_tokens=3, cancel=cancel)
        for _ in range(2):
            with pytest.raises(TemplateError, match="^the chat template of Hostile needs more than 48 MiB"):
                session.chat("space", max_tokens=3)
        assert session.messages == []
        assert llm.complete("hello", max_tokens=3, temperature=0).text
    assert set(psutil.Process().children()) <= before


def test_closing_ends_the_process_of_the_template(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with LLM(make_tiny_model(tmp_path / "tiny.gguf")) as llm:
        assert llm.chat("hello", max_tokens=3).token_ids
        assert len(set(psutil.Process().children()) - before) == 1
    assert set(psutil.Process().children()) <= before
