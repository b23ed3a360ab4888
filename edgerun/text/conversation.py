"""Messages as templates want them, which do not all want the same.

A call's arguments are a mapping for most templates and JSON text for some; reasoning has several names; some refuse a
system's message. So there are several ways to write a conversation, the usual one first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgerun.errors import TemplateError

Conversation = list[dict[str, Any]]

_SYSTEM = ("system", "developer")
_REASONING = ("thinking", "reasoning")  # as some templates call what is `reasoning_content` for most


def checked_conversation(messages: Any) -> Conversation:
    """Messages as fresh dicts whose contents are strings, calls' arguments as mappings where they are JSON objects.
    TemplateError for what is no conversation."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages must be a list of messages, got {type(messages).__name__}")
    return [_checked(i, message) for i, message in enumerate(messages)]


def other_ways(conversation: Conversation) -> Iterator[Conversation]:
    """The same in other ways, for a template that cannot write it as it is."""
    with_texts = arguments_as_text(conversation)
    if with_texts != conversation:
        yield with_texts
    thoughts_alone = [_without_content(message) for message in conversation]
    if thoughts_alone != conversation:
        yield thoughts_alone
    merged = merged_system(conversation)
    if merged != conversation:
        yield merged
        if with_texts != conversation:
            yield arguments_as_text(merged)


def arguments_as_text(conversation: Conversation) -> Conversation:
    """Every call's arguments as JSON."""
    return [_with_arguments(message, _as_text) for message in conversation]


def merged_system(conversation: Conversation) -> Conversation:
    """What the system says at the beginning, as the beginning of the user's first message."""
    n = next((i for i, message in enumerate(conversation) if message["role"] not in _SYSTEM), len(conversation))
    if not n:
        return conversation
    told = "\n\n".join(message["content"] for message in conversation[:n])
    rest = conversation[n:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{told}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": told}, *rest]


def shows_mappings(text: str, conversation: Conversation) -> bool:
    """Whether a template wrote a call's arguments as Python writes a mapping: it expects JSON text and did not look."""
    return any(
        str(arguments) in text
        for message in conversation
        for arguments in _arguments(message)
        if isinstance(arguments, Mapping) and arguments and str(arguments) != _as_text(arguments)
    )


def _checked(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise TemplateError(f"{where} must be a mapping with role and content, got {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise TemplateError(f'{where} needs a role ("system", "user", "assistant" or "tool"), got {role!r}')
    checked = _with_arguments(dict(message), _as_mapping)
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        for name in _REASONING:
            checked.setdefault(name, reasoning)
    content = message.get("content")
    if isinstance(content, str):
        return checked
    if content is None:
        if role == "assistant" or "tool_calls" in message:
            checked["content"] = ""
            return checked
        raise TemplateError(f"{where} ({role}) has no content")
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        checked["content"] = "".join(_part_text(f"{where}.content[{i}]", part) for i, part in enumerate(content))
        return checked
    raise TemplateError(f"{where}.content must be text or a list of parts, got {type(content).__name__}")


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    """A message that calls functions without what it says beside its reasoning: gpt-oss takes one of the two."""
    return {**message, "content": ""} if _calls(message) and message.get("thinking") else message


def _part_text(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        got = f"of type {kind!r}" if kind is not None else repr(type(part).__name__)
        raise TemplateError(f'{where} must be {{"type": "text", "text": ...}}, got a part {got}')
    text: str = part["text"]
    return text


def _calls(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    return list(calls) if isinstance(calls, Sequence) and not isinstance(calls, str | bytes) else []


def _arguments(message: Mapping[str, Any]) -> Iterator[Any]:
    for call in _calls(message):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield function.get("arguments")


def _with_arguments(message: dict[str, Any], write: Any) -> dict[str, Any]:
    """The message with each call's arguments as `write` has them. What is no call stays as it is: the template will
    say so."""
    calls = _calls(message)
    if not calls:
        return message
    written = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and "arguments" in function:
            call = {**call, "function": {**function, "arguments": write(function["arguments"])}}
        written.append(call)
    return {**message, "tool_calls": written}


def _as_mapping(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_text(arguments: Any) -> Any:
    if isinstance(arguments, str) or arguments is None:
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return arguments  # what JSON cannot hold is refused where the template is asked
