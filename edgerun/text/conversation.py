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
_THOUGHTS = ("reasoning_content", *_REASONING)


def checked_conversation(messages: Any) -> Conversation:
    """Messages as fresh dicts whose contents are strings, calls' arguments as mappings where they are JSON objects.
    TemplateError for what is no conversation."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TemplateError(f"messages must be a list of messages, got {type(messages).__name__}")
    return [_checked(i, message) for i, message in enumerate(messages)]


def other_ways(conversation: Conversation) -> Iterator[Conversation]:
    """The same in other ways, for a template that cannot write it as it is: each change alone, then several."""
    ways = (arguments_as_text, _thoughts_alone, gathered_system, merged_system, one_call_each, _filled, _merged_turns)
    seen = [conversation]
    for first, last in [*((i, i + 1) for i in range(len(ways))), *((i, len(ways)) for i in range(len(ways)))]:
        way = conversation
        for n in range(first, last):
            way = ways[n](way)
            if way not in seen:
                seen.append(way)
                yield way


def arguments_as_text(conversation: Conversation) -> Conversation:
    """Every call's arguments as JSON."""
    return [_with_arguments(message, _as_text) for message in conversation]


def in_order(conversation: Conversation) -> Conversation:
    """Results of functions in the order of their calls, for most templates write no ids."""
    found: Conversation = []
    for message, results in _with_results(conversation):
        found += [message, *(result for own in results for result in own)]
    return found


def one_call_each(conversation: Conversation) -> Conversation:
    """A message that calls several functions as several messages, each with the result of its own."""
    found: Conversation = []
    for message, results in _with_results(conversation):
        calls = calls_of(message)
        if len(calls) < 2:
            found += [message, *(result for own in results for result in own)]
            continue
        for i, call in enumerate(calls):
            found += [{**(_silent(message) if i else message), "tool_calls": [call]}, *results[i]]
    return found


def gathered_system(conversation: Conversation) -> Conversation:
    """All that the system says at the beginning as one message, and what it says later as the beginning of what the
    user says next."""
    n = next((i for i, message in enumerate(conversation) if message["role"] not in _SYSTEM), len(conversation))
    found = [{**conversation[0], "content": _joined(conversation[:n])}] if n else []
    told: Conversation = []
    for message in conversation[n:]:
        if message["role"] in _SYSTEM:
            told.append(message)
        elif message["role"] == "user" and told:
            found.append({**message, "content": _joined([*told, message])})
            told = []
        else:
            found.append(message)
    return [*found, {"role": "user", "content": _joined(told)}] if told else found


def as_system(conversation: Conversation) -> Conversation:
    """What OpenAI calls a developer's messages as the system's, which is what most templates know."""
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in conversation]


def lacks_system(text: str, conversation: Conversation) -> bool:
    """Whether a template left out what the system says."""
    return any(message["content"].strip() not in text for message in conversation if message["role"] in _SYSTEM)


def merged_system(conversation: Conversation) -> Conversation:
    """What the system says at the beginning, as the beginning of the user's first message."""
    n = next((i for i, message in enumerate(conversation) if message["role"] not in _SYSTEM), len(conversation))
    if not n:
        return conversation
    told = _joined(conversation[:n])
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


def _thoughts_alone(conversation: Conversation) -> Conversation:
    """Messages that call functions without what they say beside their reasoning: gpt-oss takes one of the two."""
    return [_without_content(message) for message in conversation]


def _filled(conversation: Conversation) -> Conversation:
    """An assistant's message that says nothing, as one that was cancelled, says a space."""
    return [
        {**message, "content": " "}
        if message["role"] == "assistant" and not message["content"] and not calls_of(message)
        else message
        for message in conversation
    ]


def _merged_turns(conversation: Conversation) -> Conversation:
    """What one says in several messages, in one."""
    found: Conversation = []
    for message in conversation:
        before = found[-1] if found else message
        texts = isinstance(before["content"], str) and isinstance(message["content"], str)
        if found and message["role"] == before["role"] == "user" and texts:
            found[-1] = {**before, "content": _joined([before, message])}
        else:
            found.append(message)
    return found


def _joined(messages: Conversation) -> str:
    return "\n\n".join(message["content"] for message in messages if message["content"])


def _with_results(conversation: Conversation) -> Iterator[tuple[dict[str, Any], list[Conversation]]]:
    """Each message, and of one that calls functions the results of each call, which follow it. A result without a
    call's id belongs to the call of its place."""
    at = 0
    while at < len(conversation):
        message = conversation[at]
        calls = calls_of(message)
        at += 1
        ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
        results: list[Conversation] = [[] for _ in calls]
        n = 0
        while calls and at < len(conversation) and conversation[at]["role"] == "tool":
            wanted = conversation[at].get("tool_call_id")
            owner = ids.index(wanted) if wanted is not None and wanted in ids else min(n, len(calls) - 1)
            results[owner].append(conversation[at])
            n, at = n + 1, at + 1
        yield message, results


def _silent(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what it says and thinks."""
    return {key: value for key, value in message.items() if key not in _THOUGHTS} | {"content": ""}


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": ""} if calls_of(message) and message.get("thinking") else message


def _part_text(where: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        got = f"of type {kind!r}" if kind is not None else repr(type(part).__name__)
        raise TemplateError(f'{where} must be {{"type": "text", "text": ...}}, got a part {got}')
    text: str = part["text"]
    return text


def calls_of(message: Mapping[str, Any]) -> list[Any]:
    """The calls of functions that a message holds."""
    calls = message.get("tool_calls")
    return list(calls) if isinstance(calls, Sequence) and not isinstance(calls, str | bytes) else []


def _arguments(message: Mapping[str, Any]) -> Iterator[Any]:
    for call in calls_of(message):
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            yield function.get("arguments")


def _with_arguments(message: dict[str, Any], write: Any) -> dict[str, Any]:
    """The message with each call's arguments as `write` has them. What is no call stays as it is: the template will
    say so."""
    calls = calls_of(message)
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
