"""Replies that are several messages, each with a header that says to whom it goes: gpt-oss's harmony, and Muse."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgerun.text.replies.marks import any_of, overlap
from edgerun.text.replies.parts import Part, PartKind, Tools, plain
from edgerun.text.replies.tags import TagFormat, TagReader

START, MESSAGE, CHANNEL = "<|start|>", "<|message|>", "<|channel|>"
_MOST_HEADER_CHARS = 200
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_HEADERS = (START, CHANNEL, "to=", " to=", "<|constrain|>", MESSAGE)  # what a header begins with
_BETWEEN = "\n\n"  # two messages of one kind


@dataclass(frozen=True)
class Addressee:
    """Whom a message is for: the user (text), the model itself (reasoning), or a function whose name is `name`."""

    kind: Literal["text", "reasoning", "call"]
    name: str = ""


@dataclass(frozen=True)
class MessageFormat:
    """ends: marks after a message; addressee: of a header; content: how calls stand in messages to functions; None:
    these are nothing but the arguments."""

    name: str
    ends: tuple[str, ...]
    addressee: Callable[[str], Addressee]
    content: TagFormat | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """See `TagFormat`."""
        inside = () if self.content is None else self.content.marks
        return (START, MESSAGE, CHANNEL, "<|constrain|>", *self.ends, *inside)

    def reader(self, prompt: str, tools: Tools) -> MessageReader:
        """See `TagFormat`."""
        return MessageReader(self, prompt, tools)


def harmony_addressee(header: str) -> Addressee:
    """`assistant<|channel|>analysis`, `...commentary to=functions.NAME <|constrain|>json`, `...final`."""
    recipient = _RECIPIENT.search(header)
    if recipient is not None and recipient.group(1) not in ("user", "assistant"):
        return Addressee("call", recipient.group(1).removeprefix("functions."))
    channels = _CHANNEL.findall(header)
    return Addressee("reasoning" if channels and channels[-1] == "analysis" else "text")


def muse_addressee(header: str) -> Addressee:
    """`assistant to=self`, `to=user`, or to a function."""
    recipient = _RECIPIENT.search(header)
    name = "user" if recipient is None else recipient.group(1)
    if name == "self":
        return Addressee("reasoning")
    return Addressee("text") if name == "user" else Addressee("call", name)


class MessageReader:
    """See `ReplyReader`. A reply that does not begin as a header does is an answer without one."""

    def __init__(self, format: MessageFormat, prompt: str, tools: Tools) -> None:
        self._format = format
        self._tools = tools
        self._held = ""
        begun = prompt[prompt.rfind(START) :] if START in prompt else ""
        self._in_header = MESSAGE not in begun
        self._header = begun.partition(MESSAGE)[0]
        self._addressee = format.addressee(self._header)
        self._last: PartKind = "mark"  # kind of the message before
        self._content: TagReader | None = None
        self._has_begun = False  # something of this message was said

    def push(self, text: str) -> list[Part]:
        """See `ReplyReader`."""
        self._held += text
        return self._read(is_over=False)

    def finish(self) -> list[Part]:
        """See `ReplyReader`."""
        parts = self._read(is_over=True)
        return parts + self._end_content()

    def _read(self, is_over: bool) -> list[Part]:
        parts: list[Part] = []
        while self._held and (self._read_header if self._in_header else self._read_message)(parts, is_over):
            pass
        return parts

    def _read_header(self, parts: list[Part], is_over: bool) -> bool:
        end = self._held.find(MESSAGE, 0, _MOST_HEADER_CHARS + len(MESSAGE))
        begin = next((mark for mark in _HEADERS if self._held.startswith(mark)), "")
        may_begin = begin or any(mark.startswith(self._held) for mark in _HEADERS)
        too_long = end < 0 and len(self._held) >= _MOST_HEADER_CHARS + len(MESSAGE)
        if too_long or not may_begin or (is_over and not begin):
            self._begin(Addressee("text"))
            self._say(parts, len(begin))
            return True
        if end < 0:
            if is_over:  # a header that was cut off says nothing
                parts.append(Part("mark", "", self._held))
                self._held = ""
            return False
        raw = self._held[: end + len(MESSAGE)]
        header = self._held[:end]
        self._held = self._held[len(raw) :]
        addressee = self._format.addressee(header if START in header else self._header + header)
        if addressee.kind == "call" and not self._tools and self._format.content is None:
            addressee = Addressee("reasoning")  # to nobody that there is, and no answer
        self._begin(addressee)
        if self._addressee.kind == "call" and self._format.content is None:
            parts.append(Part("call", self._addressee.name, raw))
            parts.append(Part("arguments", "", ""))
        else:
            parts.append(Part("mark", "", raw))
        return True

    def _read_message(self, parts: list[Part], is_over: bool) -> bool:
        marks = (*self._format.ends, START, CHANNEL)
        found = any_of(marks).search(self._held)
        if found is None:
            n = len(self._held) if is_over else len(self._held) - overlap(self._held, marks)
            self._say(parts, n)
            return False
        mark = found.group()
        self._say(parts, found.start())
        parts += self._end_content()
        if mark in self._format.ends:
            parts.append(Part("mark", "", mark))
            self._held = self._held[len(mark) :]
        self._in_header, self._header = True, ""
        return True

    def _begin(self, addressee: Addressee) -> None:
        self._in_header, self._addressee, self._has_begun = False, addressee, False
        if addressee.kind == "call" and self._format.content is not None:
            self._content = self._format.content.reader("", self._tools)

    def _say(self, parts: list[Part], n: int) -> None:
        """The first `n` characters belong to the message."""
        if not n:
            return
        raw, self._held = self._held[:n], self._held[n:]
        if self._content is not None:
            parts += self._content.push(raw)
            return
        kind: PartKind = "arguments" if self._addressee.kind == "call" else self._addressee.kind
        if not self._has_begun and kind == self._last and kind != "arguments":
            parts.append(Part(kind, _BETWEEN, ""))
        self._has_begun, self._last = True, kind
        parts.append(plain(raw, kind))

    def _end_content(self) -> list[Part]:
        content, self._content = self._content, None
        return [] if content is None else content.finish()
