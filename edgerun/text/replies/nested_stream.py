"""Calls whose arguments are elements within elements, a prefix before every tag (MiniMax M3), taken apart while they
come. A list's elements are all called `item`; what else holds elements is a mapping."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from edgerun.text.replies.bodies import typed
from edgerun.text.replies.call_stream import HEADER_CHARS, CallStream
from edgerun.text.replies.literal_stream import json_text
from edgerun.text.replies.literals import DEEPEST, NoLiteral, as_json
from edgerun.text.replies.marks import overlap
from edgerun.text.replies.parts import Part, Tools
from edgerun.text.replies.schemas import kinds_of, schema_of_item, schema_of_key

_SPACE = re.compile(r"\s*")
_ITEM = "item"


@dataclass(frozen=True)
class NestedStyle:
    """prefix: what stands before each tag."""

    prefix: str

    @cached_property
    def call(self) -> re.Pattern[str]:
        """What begins a call, `name` in it."""
        return re.compile(rf'\s*{re.escape(self.prefix)}<invoke name="(?P<name>[^"\n]+)">')

    @cached_property
    def element(self) -> re.Pattern[str]:
        """What begins an argument, an entry or an item, `tag` in it."""
        return re.compile(rf"{re.escape(self.prefix)}<(?P<tag>[^<>/\n]+)>")

    def open(self, text: str, tools: Tools) -> CallStream | None:
        """See `OpenStream`."""
        found = self.call.match(text[:HEADER_CHARS])
        if found is None or found["name"].strip() not in tools:
            return None
        begun = text[found.end() : HEADER_CHARS].lstrip()
        return self.begin(tools) if self.element.match(begun) else None

    def begin(self, tools: Tools) -> CallStream:
        """For calls of any functions."""
        return NestedStream(self, tools)


@dataclass
class _Element:
    """One that has begun. kind: "" until its first characters tell; n: how many elements it holds so far."""

    end: str
    schema: Any
    kind: Literal["", "text", "object", "array"] = ""
    n: int = 0


class NestedStream:
    """See `CallStream`."""

    def __init__(self, style: NestedStyle, tools: Tools) -> None:
        self._style = style
        self._tools = tools
        self._open: list[_Element] = []  # the call, and within it the elements that have begun
        self._looked = 0  # characters in which the end of a value was looked for
        self.is_broken = self.can_end = False

    def take(self, text: str, is_last: bool) -> tuple[list[Part], int]:
        """See `CallStream`."""
        parts: list[Part] = []
        at = 0
        self.can_end = False
        while not self.is_broken:
            n = self._step(parts, text[at:], is_last)
            if n is None:
                break
            at += n
        return parts, at

    # Each of these takes what it can from the front, and tells how much; None: there is not enough.

    def _step(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        if not self._open:
            return self._call(parts, text, is_last)
        element = self._open[-1]
        if element.kind == "text":
            return self._text(parts, text, element, is_last)
        return self._value(parts, text, element) if not element.kind else self._entries(parts, text, element)

    def _call(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        found = self._style.call.match(text[:HEADER_CHARS])
        if found is None:
            begins = f"{self._style.prefix}<invoke "
            rest = text.lstrip()
            may_begin = begins.startswith(rest) or (rest.startswith(begins) and len(text) < HEADER_CHARS)
            self.can_end = is_last or bool(rest and not may_begin)
            return None
        name = found["name"].strip()
        parts += [Part("call", name, ""), Part("arguments", "{", "")]
        schema = {"properties": self._tools.get(name, {})}
        self._open = [_Element(f"{self._style.prefix}</invoke>", schema, "object")]
        return found.end()

    def _entries(self, parts: list[Part], text: str, element: _Element) -> int | None:
        """The next element within this one, or its end."""
        space = _SPACE.match(text)
        assert space is not None
        n = space.end()
        if text.startswith(element.end, n):
            parts.append(Part("arguments", "}" if element.kind == "object" else "]", ""))
            self._open.pop()
            return n + len(element.end)
        found = self._style.element.match(text, n, n + HEADER_CHARS)
        if found is None:
            begins = f"{self._style.prefix}<"
            waits = begins.startswith(text[n:]) or (text.startswith(begins, n) and len(text) - n < HEADER_CHARS)
            self.is_broken = not waits
            return None
        tag = found["tag"].strip()
        if len(self._open) > DEEPEST or (element.kind == "array" and tag != _ITEM):
            self.is_broken = True
            return None
        before = ", " * bool(element.n)
        element.n += 1
        if element.kind == "object":
            before += f"{as_json(tag)}: "
            child = _Element("", schema_of_key(element.schema, tag))
        else:
            child = _Element("", schema_of_item(element.schema))
        child.end = f"{self._style.prefix}</{found['tag']}>"
        if kinds_of(child.schema) == {"string"}:
            child.kind = "text"
            before += '"'
        if before:
            parts.append(Part("arguments", before, ""))
        self._open.append(child)
        self._looked = 0
        return found.end()

    def _value(self, parts: list[Part], text: str, element: _Element) -> int | None:
        """A value of which it is not known yet whether it holds elements."""
        inner = text.lstrip()
        kinds = kinds_of(element.schema)
        found = self._style.element.match(inner, 0, HEADER_CHARS)
        if found is not None:
            is_list = "array" in kinds if len(kinds & {"array", "object"}) == 1 else found["tag"].strip() == _ITEM
            element.kind = "array" if is_list else "object"
            parts.append(Part("arguments", "[" if is_list else "{", ""))
            return 0
        begins = f"{self._style.prefix}<"
        if begins.startswith(inner) or (inner.startswith(begins) and not inner.startswith(f"{begins}/")):
            self.is_broken = len(inner) >= HEADER_CHARS
            return None
        end = text.find(element.end, self._looked)
        if end < 0:
            self._looked = max(0, len(text) - len(element.end) + 1)
            return None
        value = typed(text[:end], element.schema)
        if value == "" and kinds & {"array", "object"}:
            value = [] if "array" in kinds else {}
        try:
            parts.append(Part("arguments", as_json(value), ""))
        except NoLiteral:
            self.is_broken = True
            return None
        self._open.pop()
        return end + len(element.end)

    def _text(self, parts: list[Part], text: str, element: _Element, is_last: bool) -> int | None:
        """More of a value that is a text, or its end."""
        end = text.find(element.end)
        stop = end if end >= 0 else len(text) - (0 if is_last else overlap(text, (element.end,)))
        said = json_text(text[:stop]) + '"' * (end >= 0)
        if said:
            parts.append(Part("arguments", said, ""))
        if end < 0:
            return stop or None
        self._open.pop()
        return end + len(element.end)
