"""`LLM(draft=...)` with true models: the ones that come with edgerun, and one whose vocabulary does not fit."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine.guessers import take_all
from tiny_model import make_tiny_model

from edgerun.api import LLM
from edgerun.api.drafting import check_same_vocabulary
from edgerun.errors import UsageError

PROMPTS = ("a little boat", "Tell me a story about a fox.")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "max_tokens": 60},
    {"temperature": 0, "max_tokens": 60, "repeat_penalty": 1.3, "logprobs": 2},
    {"seed": 4, "max_tokens": 60, "logprobs": 1},
)


def answers(llm: LLM) -> list[Any]:
    done = [llm.chat(prompt, **options) for prompt in PROMPTS for options in OPTIONS]
    return [(each.text, each.token_ids, each.logprobs, each.finish_reason) for each in done]


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    with LLM("tales", threads=2) as llm:
        return answers(llm)


@pytest.fixture(params=["lookup", "tales-draft"])
def llm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    take_all(monkeypatch)
    with LLM("tales", threads=2, draft=request.param) as llm:
        yield llm


def test_the_same_answers_with_guesses(llm: LLM, plain: list[Any], request: pytest.FixtureRequest) -> None:
    assert answers(llm) == plain
    timings = llm.chat(PROMPTS[0], seed=1, max_tokens=80).timings
    if "tales-draft" in request.node.name:
        assert timings.accepted_tokens > 0.3 * timings.decode_steps


def test_the_same_answers_in_company(llm: LLM, plain: list[Any]) -> None:
    calls = [(prompt, options) for prompt in PROMPTS for options in OPTIONS]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda call: llm.session().chat(call[0], **call[1]), calls))
    assert [(each.text, each.token_ids, each.logprobs, each.finish_reason) for each in done] == plain


def test_who_guesses_next_takes_the_memory_of_who_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model has room for one text's pages; while two are answered, one has none, and nobody looks for
    garbage at every step."""
    take_all(monkeypatch)
    with LLM("tales", threads=2, context=200, draft="tales-draft") as llm:
        first, second = llm.session(), llm.session()
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
        for session in (first, second, first):
            assert session.chat(PROMPTS[0], **options).timings.drafted_tokens > 0
        monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("looked for garbage"))
        stream = first.stream_chat(PROMPTS[1], **options)
        next(stream)
        assert second.chat(PROMPTS[1], **options).timings.drafted_tokens == 0
        stream.close()
        assert second.chat(PROMPTS[1], **options).timings.drafted_tokens > 0


def test_a_model_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "tiny.gguf")
    with pytest.raises(UsageError, match=r"tiny\.gguf has another vocabulary than the model: \d+ tokens"):
        LLM("tales", draft=str(other))


def test_which_vocabularies_are_the_same() -> None:
    tokens, bos = "tokenizer.ggml.tokens", "tokenizer.ggml.bos_token_id"
    model = {tokens: ["a", "b"], bos: 0}
    check_same_vocabulary("x", {tokens: ["a", "b"], bos: 0}, model)
    for other, why in (
        ({tokens: ["a", "c"], bos: 0}, "token 1 is 'c', not 'b'"),
        ({tokens: ["a"], bos: 0}, "1 tokens, and the model 2"),
        ({tokens: ["a", "b"], bos: 1}, "bos_token_id differs"),
        ({}, "one of the two has none"),
    ):
        with pytest.raises(UsageError, match=why):
            check_same_vocabulary("x", other, model)


def test_as_typed() -> None:
    arguments = [
        sys.executable,
        "-m",
        "edgerun",
        "run",
        "tales",
        PROMPTS[0],
        "-n",
        "40",
        "--temperature",
        "0",
        "--json",
    ]
    said = [
        json.loads(subprocess.run([*arguments, *more], capture_output=True, text=True, check=True).stdout)
        for more in ([], ["--draft", "lookup"], ["--draft", "tales-draft"])
    ]
    assert said[0]["text"] == said[1]["text"] == said[2]["text"]
    assert all(0 <= each["accepted_tokens"] <= each["drafted_tokens"] for each in said)


@pytest.mark.parametrize("value", ["", 3, b"lookup", ["lookup"]])
def test_what_is_no_draft(value: Any) -> None:
    with pytest.raises(UsageError, match="draft must be"):
        LLM("tales", draft=value)
