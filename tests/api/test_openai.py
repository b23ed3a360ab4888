"""The shapes that OpenAI's and llama-cpp-python's users expect."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
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


# What llama-cpp-python's and OpenAI's users write, as their documentation and examples have it.
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER, "name": "weather"}  # the name: for the template of these tests
CHATS_ONLY = {
    "response_format", "functions", "function_call", "tools", "tool_choice", "top_logprobs", "max_completion_tokens"
}  # fmt: skip
USUAL: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.1, "typical_p": 0.9},
    {"max_tokens": -1},
    {"stop": None},
    {"stop": ["\n", "User:"]},
    {"seed": None},
    {"seed": 42},
    {"response_format": {"type": "text"}},
    {"response_format": None},
    {"functions": None, "function_call": None},
    {"tools": None, "tool_choice": None},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "none"},
    {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repeat_penalty": 1.1},
    {"tfs_z": 1.0, "mirostat_mode": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1},
    {"logits_processor": None, "grammar": None, "logit_bias": None},
    {"logit_bias": {"65": -100, "66": 5}},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": False, "top_logprobs": None},
    {"model": "gpt-4o-mini", "n": 1, "user": "somebody"},
    {"max_completion_tokens": 4},
    {"stream": True, "stream_options": {"include_usage": True}},
]


@pytest.mark.parametrize("arguments", USUAL, ids=lambda arguments: ",".join(arguments))
def test_usual_calls_of_chats(llm: LLM, arguments: dict[str, Any]) -> None:
    limit = {} if {"max_tokens", "max_completion_tokens"} & set(arguments) else {"max_tokens": 3}
    answer: Any = llm.create_chat_completion(HI, **limit, **arguments)
    if arguments.get("stream"):
        answer = list(answer)[-1]
    assert answer["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("arguments", [a for a in USUAL if not set(a) & CHATS_ONLY], ids=lambda a: ",".join(a))
def test_usual_calls_of_completions(llm: LLM, arguments: dict[str, Any]) -> None:
    limit = {} if "max_tokens" in arguments else {"max_tokens": 3}
    answer: Any = llm.create_completion("Once", **limit, **arguments)
    if arguments.get("stream"):
        answer = list(answer)[-1]
    assert answer["usage"]["completion_tokens"] >= 1
    assert llm.create_completion("Once", suffix=None, stopping_criteria=None, best_of=1, max_tokens=1)


CHAT_ORDER = (
    "messages functions function_call tools tool_choice temperature top_p top_k min_p typical_p stream stop seed "
    "response_format max_tokens presence_penalty frequency_penalty repeat_penalty tfs_z mirostat_mode mirostat_tau "
    "mirostat_eta model logits_processor grammar logit_bias logprobs top_logprobs"
)
COMPLETION_ORDER = (
    "prompt suffix max_tokens temperature top_p min_p typical_p logprobs echo stop frequency_penalty presence_penalty "
    "repeat_penalty top_k stream seed tfs_z mirostat_mode mirostat_tau mirostat_eta model stopping_criteria "
    "logits_processor grammar logit_bias"
)


@pytest.mark.parametrize(
    ("call", "order"), [(LLM.create_chat_completion, CHAT_ORDER), (LLM.create_completion, COMPLETION_ORDER)]
)
def test_arguments_come_in_llama_cpp_pythons_order(call: Any, order: str) -> None:
    parameters = inspect.signature(call).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:] == order.split()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tfs_z": 0.9}, "tfs_z must be 1.0 or None.*min_p"),
    ({"mirostat_mode": 2}, "mirostat_mode must be 0 or None"),
    ({"mirostat_tau": 3.0}, "mirostat_tau"),
    ({"mirostat_eta": 0.2}, "mirostat_eta"),
    ({"grammar": object()}, "grammar must be None.*no grammars"),
    ({"response_format": {"type": "json_object"}}, "response_format.*no grammars"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.*no grammars"),
    ({"response_format": "text"}, "response_format"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
    ({"functions": [WEATHER], "function_call": {"name": "weather"}}, "function_call"),
    ({"functions": [WEATHER], "tools": [TOOL]}, "functions and tools"),
    ({"n": 2}, "n must be 1 or None"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ({"user": 5}, "user"),
    ({"model": 5}, "model"),
    ({"stream": 1}, "stream"),
    ({"top_p": 7}, "top_p"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: ",".join(value) if value else "")
def test_what_has_no_meaning_is_refused_by_name(llm: LLM, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.create_chat_completion(HI, **arguments)


def test_what_completions_refuse(llm: LLM) -> None:
    for name, value in (("suffix", "end"), ("best_of", 2), ("stopping_criteria", [print]), ("n", 3), ("tfs_z", 0)):
        with pytest.raises(UsageError, match=f"^{name} must be"):
            llm.create_completion("Once", **{name: value})
    with pytest.raises(UsageError, match="logprobs"):
        llm.create_completion("Once", logprobs=True)


def test_functions_are_tools(llm: LLM) -> None:
    seen: list[Any] = []
    engine = fake_engine(template=SimpleNamespace(render=lambda messages, tools, **more: seen.append(tools) or "x"))
    other = LLM.from_engine(engine)
    other.create_chat_completion(HI, functions=[WEATHER], max_tokens=1)
    other.create_chat_completion(HI, functions=[WEATHER], function_call="none", max_tokens=1)
    other.create_chat_completion(HI, tools=[TOOL], max_tokens=1)
    assert seen == [[{"type": "function", "function": WEATHER}], None, [TOOL]]


def test_usage_at_the_end_of_a_stream(llm: LLM) -> None:
    for call, given in ((llm.create_completion, "Once"), (llm.create_chat_completion, HI)):
        whole: Any = call(given, max_tokens=4)
        *chunks, last = call(given, max_tokens=4, stream=True, stream_options={"include_usage": True})  # type: ignore[misc]
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert all("usage" not in chunk for chunk in chunks)


def test_embedding_shape() -> None:
    llm = LLM.from_engine(fake_engine(FakeDecoder()), name="tiny")
    answer = llm.create_embedding(["one", "two"])
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert len(answer["data"][0]["embedding"]) == 8
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
