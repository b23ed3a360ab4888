"""Chats' replies taken apart on their way from the decoder: chunks, results, messages, what the cache is good for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from edgerun import LLM
from edgerun.engine import CancelToken, Engine, SamplingParams, Session
from edgerun.text.replies import find_reply_format
from engine.fakes import IM_END, FakeTokenizer, fake_engine
from engine.test_generate import force

TOOL = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}
CALL = b'<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>'
REPLY = b"<think>\nhm\n</think>\n\nLook.\n" + CALL
THINKS = find_reply_format("<think></think><tool_call>", lambda token: False)


def engine(**more: Any) -> Engine:
    return fake_engine(reply_format=THINKS, **more)


def saying(text: bytes, **more: Any) -> dict[str, Any]:
    return {"processors": [force(text, IM_END)], "temperature": 0.0, **more}


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM.from_engine(engine()) as llm:
        yield llm


def test_reasoning_answer_and_calls_stand_apart(llm: LLM) -> None:
    chunks = list(llm.stream_chat("hi", tools=[TOOL], **saying(REPLY)))
    done = chunks[-1].completion
    assert done is not None
    assert (done.text, done.reasoning, done.finish_reason) == ("Look.", "hm", "stop")
    (call,) = done.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("f", {"a": "x"})
    assert len(call.id) == 9 and call.id.isalnum()
    assert "".join(chunk.text for chunk in chunks) == "Look."
    assert "".join(chunk.reasoning for chunk in chunks) == "hm"
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert [(delta.index, delta.id, delta.name) for delta in deltas] == [
        (0, call.id, "f"),
        *[(0, "", "")] * (len(deltas) - 1),
    ]
    assert len(deltas) > 3
    assert "".join(delta.arguments for delta in deltas) == call.arguments
    assert [i for chunk in chunks for i in chunk.token_ids] == list(done.token_ids) == list(REPLY)
    assert all(chunk.text or chunk.reasoning or chunk.tool_calls or chunk.completion for chunk in chunks)
    assert done.message == {
        "role": "assistant",
        "content": "Look.",
        "reasoning_content": "hm",
        "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "f", "arguments": call.arguments}}],
    }


def test_ids_of_calls_follow_from_what_was_said(llm: LLM) -> None:
    twice = [llm.chat("hi", tools=[TOOL], **saying(CALL + CALL)).tool_calls for _ in range(2)]
    assert twice[0] == twice[1]
    other = llm.chat("ho", tools=[TOOL], **saying(CALL)).tool_calls
    assert len({call.id for call in (*twice[0], *other)}) == 3


def test_logprobs_come_with_their_tokens(llm: LLM) -> None:
    chunks = list(llm.stream_chat("hi", logprobs=1, tools=[TOOL], **saying(REPLY)))
    assert [token.token_id for chunk in chunks for token in chunk.logprobs or ()] == list(REPLY)
    for chunk in chunks:
        assert tuple(token.token_id for token in chunk.logprobs or ()) == chunk.token_ids


def test_without_a_format_and_in_completions_text_is_what_the_model_writes(llm: LLM) -> None:
    assert llm.complete("hi", **saying(REPLY)).text == REPLY.decode()
    with LLM.from_engine(fake_engine()) as plain:
        assert plain.chat("hi", tools=[TOOL], **saying(REPLY)).text == REPLY.decode()
    assert llm.chat("hi", **saying(CALL)).text == CALL.decode()  # there are no tools


def test_a_session_keeps_what_was_thought_and_called() -> None:
    session = Session(engine())
    done = session.chat("hi", tools=[TOOL], **saying(REPLY))
    assert session.messages[1] == done.message
    answer = [{"role": "tool", "tool_call_id": done.tool_calls[0].id, "content": "7"}]
    session.chat(answer, tools=[TOOL], **saying(b"It is 7."))
    assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
    assert session.messages[3] == {"role": "assistant", "content": "It is 7."}


def test_what_a_stream_that_is_closed_or_cancelled_had_said_is_kept() -> None:
    session = Session(engine())
    chunks = session.stream_chat("hi", tools=[TOOL], **saying(REPLY))
    said = ""
    while "Look" not in said:
        said += next(chunks).text
    chunks.close()  # type: ignore[attr-defined]
    assert session.messages[1]["reasoning_content"] == "hm"
    assert session.messages[1]["content"].startswith("Look")
    cancel = CancelToken()
    cut = []
    for chunk in session.stream_chat("ho", cancel=cancel, **saying(b"<think>\nnever ends" + b"." * 50)):
        cut.append(chunk)
        if "ends" in "".join(chunk.reasoning for chunk in cut):
            cancel.cancel()
    assert cut[-1].finish_reason == "cancelled"
    assert session.messages[-1]["content"] == ""
    assert session.messages[-1]["reasoning_content"].startswith("never ends")


def test_stop_strings_and_limits_end_a_reply_wherever_it_is(llm: LLM) -> None:
    done = llm.chat("hi", stop="Look", **saying(REPLY))
    assert (done.text, done.reasoning, done.finish_reason) == ("", "hm", "stop")
    done = llm.chat("hi", tools=[TOOL], max_tokens=len(REPLY) - 16, **saying(REPLY))
    assert (done.text, done.finish_reason) == ("Look.", "length")
    (call,) = done.tool_calls  # of which something was said already
    assert call.name == "f" and '{"a": "x"}'.startswith(call.arguments)
    done = llm.chat("hi", tools=[TOOL], max_tokens=len(REPLY) - 20, **saying(REPLY))
    assert done.text.startswith("Look.\n<tool_call>") and done.tool_calls == ()


class Marked(FakeTokenizer):
    """With the beginning of a call as a control token."""

    eog_ids = frozenset((IM_END,))
    marks = {**FakeTokenizer.marks, 257: "<|tool_call_start|>", 258: "<|tool_call_end|>"}


def test_control_tokens_that_calls_are_made_of_are_seen() -> None:
    lfm = find_reply_format("", "<|tool_call_start|>".__eq__)
    tokenizer = Marked()
    text = b"[f(a='x')]"

    def says(ids: Any, logits: Any) -> Any:
        said = [257, *text, 258, IM_END]
        logits[:] = -1e9
        logits[said[len(ids) - says.n]] = 0  # type: ignore[attr-defined]
        return logits

    with LLM.from_engine(fake_engine(tokenizer=tokenizer, reply_format=lfm)) as llm:
        says.n = len(llm.engine.encode_chat("hi", [{"name": "f"}]))  # type: ignore[attr-defined]
        done = llm.chat("hi", SamplingParams(temperature=0, processors=[says]), tools=[{"name": "f"}])
        assert [(call.name, call.arguments) for call in done.tool_calls] == [("f", '{"a": "x"}')]
        assert done.text == ""
        assert llm.complete(llm.engine.encode_chat("hi", [{"name": "f"}]), temperature=0, processors=[says]).text == (
            text.decode()
        )


def test_openais_shapes(llm: LLM) -> None:
    answer: Any = llm.create_chat_completion(
        [{"role": "user", "content": "hi"}], tools=[TOOL], logits_processor=force(REPLY, IM_END)
    )
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Look.", "hm")
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": "x"}'}
    only: Any = llm.create_chat_completion(
        [{"role": "user", "content": "hi"}], tools=[TOOL], logits_processor=force(CALL, IM_END)
    )
    assert only["choices"][0]["message"]["content"] is None

    chunks: Any = llm.create_chat_completion(
        [{"role": "user", "content": "hi"}], tools=[TOOL], stream=True, logits_processor=force(REPLY, IM_END)
    )
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"] == {"role": "assistant"}
    assert "".join(each["delta"].get("reasoning_content", "") for each in deltas) == "hm"
    assert "".join(each["delta"].get("content", "") for each in deltas) == "Look."
    calls = [call for each in deltas for call in each["delta"].get("tool_calls", ())]
    assert calls[0] == {
        "index": 0,
        "id": message["tool_calls"][0]["id"],
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert len(calls) > 3 and {tuple(call) for call in calls[1:]} == {("index", "function")}
    assert "".join(call["function"]["arguments"] for call in calls[1:]) == '{"a": "x"}'
    assert (deltas[-1]["delta"], deltas[-1]["finish_reason"]) == ({}, "tool_calls")


def test_reasoning_effort_is_a_variable_of_the_template(llm: LLM) -> None:
    said: list[str] = []
    template = llm.engine._template
    assert template is not None
    render = template.render
    names = ("enable_thinking", "reasoning_effort")  # others: tests/text/test_dialects.py
    template.render = lambda *a, **k: (  # type: ignore
        said.append({name: k["variables"][name] for name in names if name in k["variables"]}) or render(*a, **k)
    )
    hi = [{"role": "user", "content": "hi"}]
    for effort in ("low", "none", "off"):
        llm.create_chat_completion(hi, reasoning_effort=effort, max_tokens=1)
    llm.create_chat_completion(hi, reasoning_effort="low", template_variables={"reasoning_effort": "x"}, max_tokens=1)
    assert said == [
        {"enable_thinking": True, "reasoning_effort": "low"},
        {"enable_thinking": False, "reasoning_effort": "none"},
        {"enable_thinking": False},
        {"enable_thinking": True, "reasoning_effort": "x"},
    ]
    with pytest.raises(ValueError, match="reasoning_effort must be one of on, off"):
        llm.create_chat_completion(hi, reasoning_effort="much")
