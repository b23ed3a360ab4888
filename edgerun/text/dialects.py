"""What a template's source tells of how it wants a conversation, where it would leave out without a word what it does
not know: a role, a second call, reasoning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgerun.text.conversation import Conversation, as_system, calls_of, gathered_system, in_order, one_call_each

_THINKS_IN_PARTS = re.compile(r"\['type'\] == 'thinking'")
_DEEPSEEK_CALL = "<｜tool▁call▁begin｜>"
_FIRST_CALL = re.compile(r"tool_calls\s*\[0\]")
_EACH_CALL = re.compile(r"for\s+\w+\s+in\s+[^%]*tool_calls")


def in_dialect(source: str, conversation: Conversation, tools: Sequence[Any] = ()) -> Conversation:
    """The conversation as a template with this source says most of it. tools: functions that may be called."""
    conversation = in_order(conversation)
    if "developer" not in source:
        conversation = as_system(conversation)
    if _THINKS_IN_PARTS.search(source):
        conversation = [_with_thoughts(message) for message in conversation]
    if "<｜tool▁calls▁begin｜>" in source and "['content'] is none" in source:  # DeepSeek V3, R1
        conversation = [_calls_alone(message) for message in conversation]
    if tools and _DEEPSEEK_CALL in source and "tools" not in source and "```json" not in source:  # DeepSeek V3.1
        n = next((i for i, message in enumerate(conversation) if message["role"] != "system"), len(conversation))
        told = {"role": "system", "content": _told(tools)}
        conversation = gathered_system([*conversation[:n], told, *conversation[n:]])
    if _FIRST_CALL.search(source) and not _EACH_CALL.search(source):
        conversation = one_call_each(conversation)
    if "tool_calls" not in source:
        write = next((write for mark, write in _WRITERS.items() if mark in source), None)
        if write is not None:
            conversation = [_with_calls(message, write) for message in conversation]
    return conversation


def completed_tools(tools: Sequence[Any]) -> list[Any]:
    """Functions with what OpenAI lets one leave out: descriptions and parameters."""
    return [_completed(tool) for tool in tools]


def _told(tools: Sequence[Any]) -> str:
    """Functions and how they are called, in the words that DeepSeek gives its V3.1, whose template does not."""
    functions = [each.get("function", each) for each in completed_tools(tools) if isinstance(each, Mapping)]
    each = "".join(
        f"### {function.get('name')}\nDescription: {function.get('description')}\n\n"
        f"Parameters: {json.dumps(function.get('parameters'), ensure_ascii=False)}\n\n"
        for function in functions
        if isinstance(function, Mapping)
    )
    call = f"{_DEEPSEEK_CALL}NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"
    return (
        f"## Tools\nYou have access to the following tools:\n\n{each}To call them, write exactly "
        f"<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>, the arguments as JSON that follows the tool's parameters; "
        "several calls stand one after the other between the outer marks, with nothing between them."
    )


def _calls_alone(message: dict[str, Any]) -> dict[str, Any]:
    """A message that calls functions and says nothing: nothing, not an empty text."""
    return {**message, "content": None} if calls_of(message) and message["content"] == "" else message


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message whose reasoning is a part of its content."""
    thoughts, text = message.get("reasoning_content"), message["content"]
    if message["role"] != "assistant" or not isinstance(thoughts, str) or not thoughts:
        return message
    parts = [{"type": "thinking", "thinking": thoughts}]
    return {**message, "content": [*parts, {"type": "text", "text": text}] if text else parts}


def _with_calls(message: dict[str, Any], write: Callable[[list[tuple[str, Any]]], str]) -> dict[str, Any]:
    """A message whose content ends with its calls, as the model wrote them."""
    functions = [call.get("function") for call in calls_of(message) if isinstance(call, Mapping)]
    calls = [(str(each.get("name")), each.get("arguments")) for each in functions if isinstance(each, Mapping)]
    return {**message, "content": message["content"] + write(calls)} if calls else message


def _python_calls(calls: list[tuple[str, Any]]) -> str:
    """LFM 2's."""

    def one(name: str, given: Any) -> str:
        named = given.items() if isinstance(given, Mapping) else ()
        return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in named)})"

    return f"<|tool_call_start|>[{', '.join(one(*call) for call in calls)}]<|tool_call_end|>"


def _literal(value: Any) -> str:
    """In Python's way, texts in JSON's quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _json_calls(calls: list[tuple[str, Any]]) -> str:
    """Granite 3's."""
    return (
        f"<|tool_call|>{json.dumps([{'name': name, 'arguments': given} for name, given in calls], ensure_ascii=False)}"
    )


_WRITERS = {"List of tools: ": _python_calls, "<|tool_call|>": _json_calls}  # by what a template shows


def _completed(tool: Any) -> Any:
    if not isinstance(tool, Mapping):
        return tool
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": _completed_function(tool["function"])}
    return _completed_function(tool) if "name" in tool else tool


def _completed_function(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    parameters = {"type": "object", "properties": {}, **(parameters if isinstance(parameters, Mapping) else {})}
    if isinstance(parameters["properties"], Mapping):
        properties = parameters["properties"].items()
        parameters["properties"] = {key: _described(value) for key, value in properties}
    return {"description": "", **function, "parameters": {**parameters, "required": parameters.get("required", [])}}


def _described(schema: Any) -> Any:
    return {**schema, "description": schema.get("description", "")} if isinstance(schema, Mapping) else schema
