"""Calls of known functions taken apart while they come: a call as soon as its first argument begins, and then its
arguments as JSON, piece by piece.

What was said of a call is not taken back: if it turns out to be none, what was said of it stays, and the rest is text.
So only functions that there are begin one; others wait until the call is whole (`bodies.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edgerun.text.replies.bodies import Body, line, typed
from edgerun.text.replies.literal_stream import LiteralStream, json_text
from edgerun.text.replies.literals import JsonEnd, NoLiteral, as_json
from edgerun.text.replies.marks import overlap
from edgerun.text.replies.parts import Call, Part, Tools
from edgerun.text.replies.schemas import kinds_of

HEADER_CHARS = 400  # in which a call's first argument must begin
_SPACE = re.compile(r"\s*")


class CallStream(Protocol):
    """Calls between one pair of marks. is_broken: what comes is no call; can_end: the mark after them may come."""

    @property
    def is_broken(self) -> bool: ...

    @property
    def can_end(self) -> bool: ...

    def take(self, text: str, is_last: bool) -> tuple[list[Part], int]:
        """Parts without what they stand for, and how much of `text` that is together. The rest comes again, with more;
        is_last: there is no more."""
        ...


OpenStream = Callable[[str, Tools], CallStream | None]
"""What stands between marks so far, and the functions -> a stream of it, once it is certain to be one."""


@dataclass(frozen=True)
class MappingStyle:
    """Calls whose arguments are one mapping. first: what stands before the arguments of the first call, `name` and
    perhaps `id` in it; further: the same of those after it; none: there is one. around: what else stands around: the
    rest of an `object`, a `list`'s comma and end, or nothing. begins: with what further calls begin."""

    first: re.Pattern[str]
    further: re.Pattern[str] | None = None
    mapping: tuple[str, str, str] = ("{", "}", ":")
    around: Literal["object", "list", "nothing"] = "nothing"
    begins: str = ""

    def open(self, text: str, tools: Tools) -> CallStream | None:
        """See `OpenStream`."""
        found = self.first.match(text[:HEADER_CHARS])
        return MappingStream(self) if found is not None and found["name"] in tools else None


class MappingStream:
    """See `CallStream`."""

    def __init__(self, style: MappingStyle) -> None:
        self._style = style
        self._header: re.Pattern[str] | None = style.first  # of the call that comes next
        self._literal: LiteralStream | None = None
        self._object: JsonEnd | None = None
        self._is_list_open = style.around == "list"
        self.is_broken = self.can_end = False

    def take(self, text: str, is_last: bool) -> tuple[list[Part], int]:
        """See `CallStream`."""
        parts: list[Part] = []
        at = 0
        while not self.is_broken:
            if self._literal is not None:
                json, n = self._literal.take(text[at:], is_last)
                at += n
                if json:
                    parts.append(Part("arguments", json, ""))
                self.is_broken = self._literal.is_broken
                if not self._literal.is_over:
                    break
                self._literal, self._header = None, None
                self._object = JsonEnd(0, depth=1) if self._style.around == "object" else None
            elif self._header is not None:
                found = self._header.match(text[at : at + HEADER_CHARS])
                if found is None:
                    self.is_broken = is_last or len(text) - at >= HEADER_CHARS
                    break
                parts.append(Part("call", found["name"], "", found.groupdict().get("id") or ""))
                self._literal = LiteralStream(*self._style.mapping)
                at += found.end()
            else:
                n = self._after(text[at:], is_last)
                at += n
                if self._header is None:
                    break
        return parts, at

    def _after(self, text: str, is_last: bool) -> int:
        """What follows a call: how much of it belongs to the calls."""
        if self._object is not None:
            self.is_broken = text.lstrip()[:1] not in ("", ",", "}")
            end = None if self.is_broken else self._object.find(text)
            self.can_end = end is not None
            self._object = None if end is not None else self._object
            return end or 0
        n = _space(text)
        if self._is_list_open and n < len(text):
            if text[n] == ",":
                self._header = self._style.further
                return n + 1
            self._is_list_open = text[n] != "]"
            self.is_broken = self._is_list_open
            self.can_end = not self._is_list_open
            return n if self.is_broken else n + 1
        self.can_end = not self._is_list_open
        if self._style.further is not None and self._style.around == "nothing" and n < len(text):
            rest = text[n:]
            if self._style.further.match(rest[:HEADER_CHARS]):
                self._header, self.can_end = self._style.further, False
            elif not is_last and _may_begin(rest, self._style.begins):
                self.can_end = False
        return 0


@dataclass(frozen=True)
class TaggedStyle:
    """Calls whose arguments stand between tags of their own. call: what begins one, `name` in it; parameter: what
    begins an argument, `key` in it and perhaps `text`, whether it is one; value_end, call_end: what ends them; call_end
    "": nothing does. by_line: a value has lines of its own. begins: with what calls and parameters begin; "": there is
    one call. quotes: what may stand around a value, so that it may hold its end."""

    call: re.Pattern[str]
    parameter: re.Pattern[str]
    value_end: str
    call_end: str
    begins: tuple[str, str]
    by_line: bool = False
    quotes: tuple[str, str] = ("", "")

    def open(self, text: str, tools: Tools) -> CallStream | None:
        """See `OpenStream`."""
        found = self.call.match(text[:HEADER_CHARS])
        if found is None or found["name"].strip() not in tools:
            return None
        begun = text[found.end() : HEADER_CHARS]
        return self.begin(tools) if self.parameter.match(begun[_space(begun) :]) else None

    def begin(self, tools: Tools) -> CallStream:
        """For calls of any functions."""
        return TaggedStream(self, tools)


class TaggedStream:
    """See `CallStream`."""

    def __init__(self, style: TaggedStyle, tools: Tools) -> None:
        self._style = style
        self._tools = tools
        self._state: Literal["call", "parameters", "quote", "value"] = "call"
        self._name = ""
        self._n_arguments = 0
        self._schema: Any = None
        self._value_end = style.value_end
        self._is_text = False  # the value is one, which is told as it comes
        self._has_begun = False  # something of it was taken
        self._looked = 0  # characters in which its end was looked for
        self.is_broken = self.can_end = False

    def take(self, text: str, is_last: bool) -> tuple[list[Part], int]:
        """See `CallStream`."""
        parts: list[Part] = []
        at = 0
        self.can_end = False
        steps = {"call": self._call, "parameters": self._parameters, "quote": self._quote, "value": self._value}
        while not self.is_broken:
            n = steps[self._state](parts, text[at:], is_last)
            if n is None:
                break
            at += n
        return parts, at

    # Each of these takes what it can from the front, and tells how much; None: there is not enough.

    def _call(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        n = _space(text)
        found = self._style.call.match(text[: n + HEADER_CHARS])
        if found is not None and (self._style.begins[0] or not self._name):
            self._name = found["name"].strip()
            self._n_arguments = 0
            self._state = "parameters"
            parts.append(Part("call", self._name, ""))
            return found.end()
        self.can_end = is_last or not _may_begin(text[n:], self._style.begins[0])
        return None

    def _parameters(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        n = _space(text)
        found = self._style.parameter.match(text[n : n + HEADER_CHARS])
        if found is not None:
            key, is_text = found["key"].strip(), found.groupdict().get("text")
            self._schema = _SAID.get(is_text or "", self._tools.get(self._name, {}).get(key))
            self._is_text = kinds_of(self._schema) == {"string"}
            self._has_begun, self._looked, self._state = False, 0, "quote"
            before = ", " if self._n_arguments else "{"
            self._n_arguments += 1
            parts.append(Part("arguments", f"{before}{as_json(key)}: {_QUOTE * self._is_text}", ""))
            return n + found.end()
        end = self._style.call_end
        has_end = bool(end) and text.startswith(end, n)
        if not (has_end or is_last):
            rest = text[n:]
            if not rest or _may_begin(rest, self._style.begins[1]) or (end and end.startswith(rest)):
                return None
        parts.append(Part("arguments", "}" if self._n_arguments else "{}", ""))
        self._state = "call"
        return n + len(end) if has_end else 0

    def _quote(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        begin, end = self._style.quotes
        if len(text) < len(begin) and begin.startswith(text) and not is_last:
            return None
        is_quoted = text.startswith(begin)
        self._value_end = (end if is_quoted else "") + self._style.value_end
        self._state = "value"
        return len(begin) if is_quoted else 0

    def _value(self, parts: list[Part], text: str, is_last: bool) -> int | None:
        mark = self._value_end
        end = text.find(mark, self._looked)
        if self._is_text:
            return self._text(parts, text, end, is_last)
        if end < 0:
            self._looked = max(0, len(text) - len(mark) + 1)
            return None
        try:
            json = as_json(typed(line(text[:end]) if self._style.by_line else text[:end], self._schema))
        except NoLiteral:
            self.is_broken = True
            return None
        parts.append(Part("arguments", json, ""))
        self._state = "parameters"
        return end + len(mark)

    def _text(self, parts: list[Part], text: str, end: int, is_last: bool) -> int | None:
        """More of a value that is a text; `end`: where it is over, or -1."""
        if not text:
            return None
        first = int(self._style.by_line and not self._has_begun and text[0] == "\n")
        self._has_begun = True
        if end < 0:
            stop = len(text) if is_last else len(text) - overlap(text, (self._value_end,))
            if self._style.by_line and not is_last and stop > first and text[stop - 1] == "\n":
                stop -= 1
        else:
            stop = end
        last = int(end >= 0 and self._style.by_line and stop > first and text[stop - 1] == "\n")
        said = json_text(text[first : stop - last]) + _QUOTE * (end >= 0)
        if said:
            parts.append(Part("arguments", said, ""))
        if end >= 0:
            self._state = "parameters"
            return end + len(self._value_end)
        return max(first, stop) or None


_QUOTE = '"'
_SAID: dict[str, Any] = {"true": {"type": "string"}, "string": {"type": "string"}, "false": {}}


def body_of(begin: Callable[[Tools], CallStream]) -> Body:
    """Calls of such a stream as a body: whole, of any function."""

    def read(body: str, tools: Tools) -> list[Call] | None:
        stream = begin(tools)
        parts, n = stream.take(body, True)
        if stream.is_broken or not stream.can_end or body[n:].strip():
            return None
        calls: list[list[str]] = []
        for part in parts:
            if part.kind == "call":
                calls.append([part.text, ""])
            else:
                calls[-1][1] += part.text
        return [Call(name, arguments) for name, arguments in calls] or None

    return read


def _space(text: str) -> int:
    found = _SPACE.match(text)
    assert found is not None
    return found.end()


def _may_begin(text: str, begin: str) -> bool:
    """Whether there may be a beginning in it that is not whole yet."""
    return bool(text and begin) and (begin.startswith(text) or (text.startswith(begin) and len(text) < HEADER_CHARS))
