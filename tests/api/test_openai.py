"""The shapes that OpenAI's and llama-cpp-python's users expect."""

from __future__ import annotations

from typing import Any

import pytest
from engine.fakes import FakeDecoder, fake_engine

from edgerun.api import LLM
from edgerun.errors import UsageError


@pytest.fixture
def llm() -> LLM:
    return LLM.from_engine(fake_engine(), name="tiny")


def test_completion(llm: LLM) -> None:
    answer: Any = llm.create_completion("Once", max_tokens=6, temperature=0)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "tiny"
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice == {
        "text": llm.complete("Once", max_tokens=6, temperature=0).text,
        "index": 0,
        "logprobs": None,
        "finish_reason": "length",
    }
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 6, 11)


def test_calling_the_model_completes_16_tokens(llm: LLM) -> None:
    assert llm("Once")["usage"]["completion_tokens"] == 16  # type: ignore[index,call-overload]


def test_echo_and_the_name_in_the_answer(llm: LLM) -> None:
    answer: Any = llm.create_completion("Once", max_tokens=2, temperature=0, echo=True, model="other")
    assert answer["choices"][0]["text"].startswith("Once")
    assert answer["model"] == "other"


def test_completion_stream_is_the_same_text(llm: LLM) -> None:
    whole: Any = llm.create_completion("Once", max_tokens=6, temperature=0)
    chunks: Any = list(llm.create_completion("Once", max_tokens=6, temperature=0, stream=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert [c["choices"][0]["finish_reason"] for c in chunks][-2:] == [None, "length"]
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[0]["object"] == "text_completion"


def test_completion_logprobs(llm: LLM) -> None:
    answer: Any = llm.create_completion("Once", max_tokens=4, temperature=0, logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == answer["choices"][0]["text"]
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert all(p <= 0 for p in logprobs["token_logprobs"])
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])


def test_chat_completion(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    answer: Any = llm.create_chat_completion(messages, max_tokens=5, temperature=0)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": llm.chat(messages, max_tokens=5, temperature=0).text,
    }
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


def test_chat_stream(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    whole: Any = llm.create_chat_completion(messages, max_tokens=5, temperature=0)
    chunks: Any = list(llm.create_chat_completion(messages, max_tokens=5, temperature=0, stream=True))
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}


def test_chat_logprobs(llm: LLM) -> None:
    answer: Any = llm.create_chat_completion(
        [{"role": "user", "content": "Hi"}], max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == answer["choices"][0]["message"]["content"]
    assert all(entry["bytes"] == list(entry["token"].encode()) for entry in content)
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in content)  # greedy
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)


@pytest.mark.parametrize("max_tokens", [None, 0, -1])
def test_no_limit_is_the_context(max_tokens: int | None) -> None:
    llm = LLM.from_engine(fake_engine(context=40))
    answer: Any = llm.create_completion("Once", max_tokens=max_tokens, seed=-1)
    assert answer["usage"]["total_tokens"] == 40


class ProcessorList(list):  # type: ignore[type-arg]
    """As llama-cpp-python's: a list that can be called."""

    def __call__(self, ids: Any, logits: Any) -> Any:
        for processor in self:
            logits = processor(ids, logits)
        return logits


def test_logits_processors_alone_and_in_lists(llm: LLM) -> None:
    def only_a(ids: Any, logits: Any) -> Any:
        logits[:] = -1e9
        logits[65] = 0
        return logits

    for given in (only_a, [only_a], ProcessorList([only_a])):
        answer: Any = llm.create_completion("Once", max_tokens=3, logits_processor=given)
        assert answer["choices"][0]["text"] == "AAA"


def test_what_has_no_effect_is_refused(llm: LLM) -> None:
    with pytest.raises(TypeError, match="mirostat_mode"):
        llm.create_completion("Once", mirostat_mode=2)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="top_p"):
        llm.create_chat_completion([{"role": "user", "content": "Hi"}], top_p=7)


def test_embedding_shape() -> None:
    llm = LLM.from_engine(fake_engine(FakeDecoder()), name="tiny")
    answer = llm.create_embedding(["one", "two"])
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert len(answer["data"][0]["embedding"]) == 8
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
