"""Arguments of calls that are more than numbers: prompts, ids, messages, tools. What is not one is a UsageError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgerun.engine.cancel import CancelSignal
from edgerun.engine.parts import Message
from edgerun.errors import UsageError
from edgerun.options import as_text, as_whole, items_of, refused, shown

Prompt = str | Sequence[int]
Messages = str | Message | Sequence[Message]

_OF_TEMPLATES = ("messages", "tools", "add_generation_prompt", "self")  # given to them otherwise


def checked_text(name: str, value: object) -> str:
    """A plain text; it may be empty."""
    text = as_text(value)
    if text is None:
        hint = "a text (bytes must be decoded)" if isinstance(value, bytes | bytearray) else "a text"
        raise refused(name, hint, value)
    return text


def checked_ids(name: str, value: object, vocab_size: int) -> list[int]:
    """Token ids of a sequence, or of a numpy array (n,) of whole numbers."""
    ids = []
    for item in _id_items(name, value):
        number = as_whole(item)
        if number is None:
            raise refused(name, "whole numbers, token ids", item)
        if not 0 <= number < vocab_size:
            raise UsageError(f"{name}: token id {shown(number)} is not in the vocabulary of {vocab_size}")
        ids.append(number)
    return ids


def _id_items(name: str, value: object) -> Iterator[object]:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return iter(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return iter(value)
    raise refused(name, "a text or a sequence of token ids" if name == "prompt" else "a sequence of token ids", value)


def checked_messages(messages: object) -> list[Message]:
    """A text is the user's one message; each message must have a role."""
    text = as_text(messages)
    if text is not None:
        return [{"role": "user", "content": text}]
    given = [messages] if isinstance(messages, Mapping) else items_of(messages)
    if given is None:
        raise refused("messages", "a text or a list of messages", messages)
    for message in given:
        if not isinstance(message, Mapping) or as_text(message.get("role")) is None:
            raise refused("messages", "mappings with a role and content", message)
    if not given:
        raise UsageError("messages must be at least one")
    return given


def checked_tools(tools: object) -> list[Mapping[str, Any]] | None:
    """JSON schemas for the template; None: there are none."""
    if tools is None:
        return None
    given = items_of(tools)
    if given is None or not all(isinstance(tool, Mapping) for tool in given):
        raise refused("tools", "a list of mappings, JSON schemas as OpenAI has them", tools)
    return given


def checked_variables(variables: object) -> dict[str, Any]:
    """What a template gets by name."""
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise refused("template_variables", "a mapping of names to values", variables)
    checked = {}
    for key, value in variables.items():
        name = as_text(key)
        if name is None or name in _OF_TEMPLATES:
            raise refused("template_variables", f"names other than {', '.join(_OF_TEMPLATES)}", key)
        checked[name] = value
    return checked


def checked_cancel(cancel: object) -> CancelSignal | None:
    """Something with an `is_set()`, or None."""
    if cancel is None or (
        isinstance(cancel, CancelSignal) and callable(cancel.is_set) and not isinstance(cancel, type)
    ):
        return cancel
    raise refused("cancel", "a CancelToken, a threading.Event or None", cancel)
