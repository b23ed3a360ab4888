"""What a reply consists of, piece by piece as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

PartKind = Literal["text", "reasoning", "call", "arguments", "mark"]
"""text: the answer's; reasoning: what the model thinks beforehand; call: one of the function `text` begins; arguments:
of that call, JSON, perhaps a piece of it; mark: what stands between these and belongs to none."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a reply. `raw` is what of the model's text it stands for: those of all parts, joined, are that text.
    `call_id`: of a call, where the model gives it one."""

    kind: PartKind
    text: str
    raw: str
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A function's name and its arguments as JSON."""

    name: str
    arguments: str
    call_id: str = ""


Tools = Mapping[str, Mapping[str, Any]]
"""Functions that may be called, by name: the JSON schema of each one's arguments, by argument."""


class ReplyReader(Protocol):
    """Takes a reply as it comes, in any pieces: the parts that it makes of them, joined, are always the same."""

    def push(self, text: str) -> list[Part]:
        """More of the reply -> what can be said of it for certain."""
        ...

    def finish(self) -> list[Part]:
        """The reply is over -> what is left."""
        ...


def known_tools(tools: Iterable[Any]) -> Tools:
    """Functions of a list of tools as OpenAI has them, or of bare functions. What is neither is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(function, Mapping) and isinstance(name, str):
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            found[name] = properties if isinstance(properties, Mapping) else {}
    return found


def plain(text: str, kind: PartKind = "text") -> Part:
    """A part that is what the model wrote."""
    return Part(kind, text, text)


def call_parts(calls: Iterable[Call], raw: str) -> list[Part]:
    """Whole calls; the first stands for all of `raw`."""
    parts = []
    for call in calls:
        parts.append(Part("call", call.name, raw, call.call_id))
        parts.append(Part("arguments", call.arguments, ""))
        raw = ""
    return parts
