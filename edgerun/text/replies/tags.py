"""Replies whose reasoning and calls stand between marks, as <think>...</think> and <tool_call>...</tool_call>."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from edgerun.text.replies.bodies import Body
from edgerun.text.replies.call_stream import HEADER_CHARS, CallStream, OpenStream
from edgerun.text.replies.ends import never
from edgerun.text.replies.literals import JsonEnd, NoLiteral
from edgerun.text.replies.marks import any_of, n_certain
from edgerun.text.replies.parts import Call, Part, Tools, call_parts, plain

_MOST_ENDS = 8  # that are tried for a call whose first end seems to stand in a value
_MOST_HEADER_CHARS = 200  # before a call's JSON
_HEADER = re.compile(r"[\w.\-\[\]\s]*")


@dataclass(frozen=True)
class Reasoning:
    """The marks around reasoning. anywhere: it may come again later; else only before anything is answered."""

    begin: str
    end: str
    anywhere: bool = False


@dataclass(frozen=True)
class CallMarks:
    """The marks around a call, and how to read what stands between. end: "" where it is over with its JSON. n_kept: so
    many characters at the end of `begin` belong to the body too. known: only of functions that there are, for `begin`
    may stand in any text. first: only before anything is answered, or right after another call, from which `between`
    may part it. is_within: whether a body breaks off within a value, so that its end may be none. stream: takes calls
    of known functions apart while they come; None: they come whole."""

    begin: str
    end: str
    body: Body
    n_kept: int = 0
    known: bool = False
    first: bool = False
    between: str = ""
    is_within: Callable[[str], bool] = never
    stream: OpenStream | None = None


@dataclass(frozen=True)
class TagFormat:
    """reasoning: its marks, if there is any; calls: those of calls; around: marks that mean nothing by themselves;
    inside: tokens that marks and calls are made of; unclosed: marks that end reasoning which did not end by itself;
    calls_end: whether calls end it, too, or stand in it as other text does; called: the marks of a call of this
    function, where its name is part of them; begun: what of a reply's first mark the prompt ends with."""

    name: str
    reasoning: Reasoning | None = None
    calls: tuple[CallMarks, ...] = ()
    around: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    unclosed: tuple[str, ...] = ()
    calls_end: bool = False
    called: Callable[[str], CallMarks] | None = None
    begun: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that must be seen to take a reply apart, though they be control tokens."""
        thinking = () if self.reasoning is None else (self.reasoning.begin, self.reasoning.end)
        calls = (mark for each in self.calls for mark in (each.begin, each.end) if mark)
        return (*thinking, *calls, *self.around, *self.inside)

    def reader(self, prompt: str, tools: Tools) -> TagReader:
        """For one reply. prompt: what the reply continues, or the end of it; tools: without any, nothing is a call."""
        named = () if self.called is None else tuple(map(self.called, tools))
        return TagReader(replace(self, calls=(*self.calls, *named)), prompt, tools)


class TagReader:
    """See `ReplyReader`. Space around marks belongs to them; a call that cannot be read is text."""

    def __init__(self, format: TagFormat, prompt: str, tools: Tools) -> None:
        self._format = format
        self._tools = tools
        self._thinking = format.reasoning
        is_open = self._thinking is not None and prompt.rstrip().endswith(self._thinking.begin)
        self._state: Literal["text", "reasoning", "call"] = "reasoning" if is_open else "text"
        self._n_before = len(format.begun) if prompt.endswith(format.begun) else 0  # characters of `held` not replied
        self._held = format.begun[: self._n_before]  # of which nothing can be said yet
        self._swallows = is_open  # space comes after a mark
        self._may_think = not is_open
        self._is_unclosed = False  # reasoning ended without its mark, which may still come
        self._has_answered = False
        self._call = CallMarks("", "", _no_call)  # the one that is being read
        self._begun = ""  # what stood before its body
        self._after: CallMarks | None = None  # nothing has been said since such a call
        self._looked = 0  # characters of `held` in which its end was looked for
        self._n_ends = 0
        self._json: JsonEnd | None = None
        self._stream: CallStream | None = None  # of the call, once its first argument has begun

    def push(self, text: str) -> list[Part]:
        """See `ReplyReader`."""
        self._held += text
        return self._replied(self._read(is_over=False))

    def finish(self) -> list[Part]:
        """See `ReplyReader`."""
        return self._replied(self._read(is_over=True))

    def _replied(self, parts: list[Part]) -> list[Part]:
        """Parts without what the prompt ended with."""
        for i, part in enumerate(parts):
            n = min(self._n_before, len(part.raw))
            self._n_before -= n
            if n:
                parts[i] = replace(part, raw=part.raw[n:], text=part.text[n:] if part.kind == "text" else part.text)
        return parts

    def _read(self, is_over: bool) -> list[Part]:
        parts: list[Part] = []
        steps = {"text": self._read_text, "reasoning": self._read_reasoning, "call": self._read_call}
        while (self._held or (is_over and self._state == "call")) and steps[self._state](parts, is_over):
            pass
        return parts

    # Each of these takes what it can from the front of `held`, and tells whether there may be more to take.

    def _read_text(self, parts: list[Part], is_over: bool) -> bool:
        self._swallow(parts)
        if self._after is not None and self._held:
            return self._read_between(parts, self._after, is_over)
        openings = self._openings()
        found = any_of(openings).search(self._held) if openings else None
        if found is None:
            self._say(parts, len(self._held) if is_over else n_certain(self._held, openings))
            return False
        n = len(self._held[: found.start()].rstrip())
        if n:  # an answer: some marks mean nothing after it
            self._say(parts, n)
            return True
        mark = found.group()
        call = next((call for call in self._format.calls if call.begin == mark), None)
        if call is not None and call.known:
            is_call = self._is_known_call(call, found.end(), "", is_over)
            if not is_call:
                self._say(parts, 0 if is_call is None else found.end())
                return is_call is not None
        n = found.end() - (0 if call is None else call.n_kept)
        raw, self._held = self._held[:n], self._held[n:]
        self._swallows = True
        if call is not None:
            self._begin_call(call, raw)
            return True
        parts.append(Part("mark", "", raw))
        if self._thinking is not None and mark == self._thinking.begin:
            self._state = "reasoning"
        return True

    def _read_between(self, parts: list[Part], call: CallMarks, is_over: bool) -> bool:
        rest = self._held.removeprefix(call.between).lstrip()
        begun = self._held[: len(self._held) - len(rest)]
        if rest.startswith(call.begin):
            self._held, self._after = rest, None
            self._begin_call(call, begun)
            return True
        if rest:
            self._after = None
        elif is_over:
            self._take(parts, "mark", len(begun))
        return bool(rest)

    def _begin_call(self, call: CallMarks, begun: str) -> None:
        self._call, self._begun, self._state = call, begun, "call"
        self._looked = self._n_ends = 0
        self._json, self._stream = None, None

    def _read_reasoning(self, parts: list[Part], is_over: bool) -> bool:
        assert self._thinking is not None
        self._swallow(parts)
        end = self._thinking.end
        calls = self._format.calls if self._format.calls_end and self._tools else ()
        endings = (end, *self._format.unclosed, *(call.begin for call in calls))
        found = any_of(endings).search(self._held)
        if found is None:
            n = len(self._held.rstrip()) if is_over else n_certain(self._held, endings)
            self._take(parts, "reasoning", n)
            if is_over:
                self._take(parts, "mark", len(self._held))
            return False
        call = next((call for call in calls if call.begin == found.group()), None)
        is_call = None if call is None else self._is_known_call(call, found.end(), end, is_over)
        if is_call is False:
            self._take(parts, "reasoning", found.end())
            return True
        self._take(parts, "reasoning", len(self._held[: found.start()].rstrip()))
        if call is not None and is_call is None:
            return False
        self._is_unclosed = found.group() != end
        if not self._is_unclosed:
            self._take(parts, "mark", self._held.index(end) + len(end))
        self._state, self._swallows, self._may_think = "text", True, self._thinking.anywhere
        return True

    def _is_known_call(self, call: CallMarks, at: int, until: str, is_over: bool) -> bool | None:
        """Whether a call of a function that there is begins before `at`; `until`: which mark it cannot hold. None:
        that cannot be said yet."""
        most = HEADER_CHARS + len(call.end)
        body = self._held[at - call.n_kept :][:most]
        stops = bool(until) and until in body
        body = body.partition(until)[0] if stops else body
        if call.stream is not None and call.stream(body, self._tools) is not None:
            return True
        end = body.find(call.end, 0, most) if call.end else -1
        if end >= 0 or (is_over and not stops and len(body) < most):
            calls = _read_body(call.body, body[:end] if end >= 0 else body, self._tools)
            return calls is not None and all(each.name in self._tools for each in calls)
        return False if stops or len(body) >= most else None

    def _read_call(self, parts: list[Part], is_over: bool) -> bool:
        call = self._call
        if self._stream is None and call.stream is not None and not self._n_ends:
            self._stream = call.stream(self._held, self._tools)
        if self._stream is not None:
            return self._read_stream(parts, self._stream, is_over)
        end = self._end_of_call()
        if end is None and not is_over:
            return False
        n = len(self._held) if end is None else end
        n_raw = n if end is None else n + len(call.end)
        body = self._held[:n]
        calls = _read_body(call.body, body, self._tools)
        if calls is None and end is not None and self._n_ends < _MOST_ENDS and call.is_within(body):
            self._n_ends, self._looked = self._n_ends + 1, n_raw
            return True
        self._state = "text"
        if calls is not None:
            parts += call_parts(calls, self._begun + self._held[:n_raw])
            self._held, self._swallows = self._held[n_raw:], True
            self._after = call if call.first else None
            self._answered()
            return True
        # It is text. The innermost of several beginnings may still be a call, where there is an end at all.
        again = body.rfind(call.begin) if end is not None and call.end else -1
        kept = n_raw if again < 0 else again
        self._held = self._begun + self._held
        self._swallows = False
        self._say(parts, len(self._begun) + kept)
        return True

    def _read_stream(self, parts: list[Part], stream: CallStream, is_over: bool) -> bool:
        """More of a call that comes piece by piece."""
        found, n = stream.take(self._held, is_over)
        raw, self._held, self._begun = self._begun + self._held[:n], self._held[n:], ""
        found = found or ([Part("mark", "", "")] if raw else [])
        for i, part in enumerate(found):
            parts.append(replace(part, raw="" if i else raw))
        self._answered()
        rest, end = self._held.lstrip(), self._call.end
        if stream.can_end and (not end or rest.startswith(end)):
            self._take(parts, "mark", len(self._held) - len(rest) + len(end) if end else 0)
            self._state, self._swallows = "text", True
            self._after = self._call if self._call.first else None
            return True
        waits = not stream.is_broken and (not stream.can_end or end.startswith(rest))
        if waits and not is_over:
            return False
        if is_over and not stream.can_end and not stream.is_broken:  # it is cut off
            self._take(parts, "mark", len(self._held))
        self._state, self._swallows = "text", False
        return True

    def _end_of_call(self) -> int | None:
        """Where the body ends; None: it goes on."""
        call = self._call
        if call.end:
            found = self._held.find(call.end, self._looked)
            if found < 0:
                self._looked = max(self._looked, len(self._held) - len(call.end) + 1)
            return None if found < 0 else found
        start = len(self._held) - len(self._held.lstrip())
        if not self._held.startswith("[", start):
            start = self._held.find("{")
        header = self._held if start < 0 else self._held[:start]
        if len(header) > _MOST_HEADER_CHARS or not _HEADER.fullmatch(header):
            return 0
        if start < 0:
            return None
        if self._json is None:
            self._json = JsonEnd(start)
        return self._json.find(self._held)

    def _openings(self) -> tuple[str, ...]:
        """Marks that mean something now."""
        thinking = (self._thinking.begin,) if self._thinking is not None and self._may_think else ()
        calls = [call.begin for call in self._format.calls if not (call.first and self._has_answered)]
        late = (self._thinking.end,) if self._thinking is not None and self._is_unclosed else ()
        return (*thinking, *late, *self._format.around, *(calls if self._tools else ()))

    def _swallow(self, parts: list[Part]) -> None:
        """Space after a mark."""
        if self._swallows:
            self._take(parts, "mark", len(self._held) - len(self._held.lstrip()))
            self._swallows = not self._held

    def _say(self, parts: list[Part], n: int) -> None:
        """The first `n` characters are text."""
        if self._held[:n].strip():
            self._answered()
        self._take(parts, "text", n)

    def _answered(self) -> None:
        self._has_answered = True
        self._may_think = self._may_think and self._thinking is not None and self._thinking.anywhere

    def _take(self, parts: list[Part], kind: Literal["text", "reasoning", "mark"], n: int) -> None:
        if n:
            raw, self._held = self._held[:n], self._held[n:]
            parts.append(Part("mark", "", raw) if kind == "mark" else plain(raw, kind))


def _no_call(body: str, tools: Tools) -> list[Call] | None:
    return None


def _read_body(read: Body, body: str, tools: Tools) -> list[Call] | None:
    try:
        return read(body, tools)
    except NoLiteral:
        return None
