"""A value as models write it in calls, turned into JSON piece by piece while it comes: JSON, Python's literals, and
Gemma's own quotes and bare keys. What `literals.Scanner` reads whole."""

from __future__ import annotations

import json
import re

from edgerun.text.replies.literals import (
    CLOSING,
    DEEPEST,
    HEX,
    NUMBER,
    QUOTES,
    WORD,
    WORDS,
    NoLiteral,
    Scanner,
    as_json,
)
from edgerun.text.replies.marks import overlap

_PAIR_CHARS = 12  # of \\uD83D\\uDE00
_MOST_WORD_CHARS = 1000  # of a key, a number or a word
_SPACE = re.compile(r"\s*")
_IN_QUOTES = {quote: re.compile(r"[\\" + quote + "]") for quote in QUOTES if len(quote) == 1}
_SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(text: str) -> str:
    """A piece of a text as it stands between JSON's quotes."""
    return _SURROGATE.sub("\ufffd", json.dumps(text, ensure_ascii=False)[1:-1])


class LiteralStream:
    """One mapping. opening, closing, between: what stands around it and after a key; `(`, `)` and `=` for the arguments
    of a call in Python's way."""

    def __init__(self, opening: str = "{", closing: str = "}", between: str = ":") -> None:
        self._first = opening, closing, between
        self._open: list[tuple[str, str]] = []  # of each container around: what closes it, and what follows its keys
        self._quote = ""  # of the text that is being read
        self._wants = "opening"  # opening, key, between, value, or after (a comma or an end)
        self._is_empty = True  # nothing stands in the innermost container yet
        self.is_over = False
        self.is_broken = False  # it is no such value

    def take(self, text: str, is_last: bool) -> tuple[str, int]:
        """(JSON, how much of `text` it stands for). The rest shall come again, with more; is_last: there is no more."""
        out: list[str] = []
        at = 0
        while not (self.is_over or self.is_broken):
            step = self._string if self._quote else self._token
            try:
                found = step(text, at, is_last)
            except NoLiteral:
                self.is_broken = True
                break
            if found is None:
                break
            piece, at = found
            out.append(piece)
        return "".join(out), at

    def _token(self, text: str, at: int, is_last: bool) -> tuple[str, int] | None:
        """The next token from `at` on: its JSON, and where it ends; None: there is not enough of it yet."""
        space = _SPACE.match(text, at)
        assert space is not None
        if space.end() == len(text):
            return ("", space.end()) if space.end() > at else None
        at = space.end()
        if self._wants == "opening":
            return self._begin(text, at)
        if self._wants == "between":
            self._need(text, at, self._open[-1][1])
            self._wants = "value"
            return ": ", at + 1
        closing, between = self._open[-1]
        if self._wants != "value" and text[at] == closing:
            return self._end(at)
        if self._wants == "after":
            self._need(text, at, ",")
            self._wants = "key" if between else "item"
            return "", at + 1
        if self._wants == "key":
            return self._key(text, at)
        return self._value(text, at, is_last)

    def _begin(self, text: str, at: int) -> tuple[str, int]:
        opening, closing, between = self._first
        self._need(text, at, opening)
        self._open.append((closing, between))
        self._wants, self._is_empty = "key", True
        return "{", at + 1

    def _end(self, at: int) -> tuple[str, int]:
        _, between = self._open.pop()
        self._wants, self._is_empty = "after", False
        self.is_over = not self._open
        return "}" if between else "]", at + 1

    def _key(self, text: str, at: int) -> tuple[str, int] | None:
        """A key comes whole: one is short."""
        scanner = Scanner(text, at)
        quote = next((quote for quote in QUOTES if text.startswith(quote, at)), None)
        if quote is None and any(quote.startswith(text[at:]) for quote in QUOTES):
            return None
        is_long = len(text) - at > _MOST_WORD_CHARS
        try:
            key = scanner.word() if quote is None else scanner.string(quote)
        except NoLiteral:
            if quote is None or is_long:
                raise
            return None  # without its end yet
        if scanner.at - at > _MOST_WORD_CHARS:
            raise NoLiteral("a key without end")
        if quote is None and scanner.at == len(text):
            return None
        self._wants = "between"
        return self._separator() + as_json(key), scanner.at

    def _value(self, text: str, at: int, is_last: bool) -> tuple[str, int] | None:
        quote = next((quote for quote in QUOTES if text.startswith(quote, at)), None)
        if quote is None and not is_last and any(quote.startswith(text[at:]) for quote in QUOTES):
            return None
        if quote is not None:
            self._quote, self._wants = quote, "after"
            return self._before_value() + '"', at + len(quote)
        if text[at] in CLOSING:
            if len(self._open) > DEEPEST:
                raise NoLiteral("it nests too deeply")
            is_mapping, before = text[at] == "{", self._before_value()
            self._open.append((CLOSING[text[at]], ":" if is_mapping else ""))
            self._wants, self._is_empty = ("key" if is_mapping else "item"), True
            return before + ("{" if is_mapping else "["), at + 1
        word = WORD.match(text, at)
        if word is None or word.end() - at > _MOST_WORD_CHARS:
            raise NoLiteral(f"no value at {at}")
        if word.end() == len(text):  # a number that is cut off is another number
            return None
        self._wants = "after"
        return self._before_value() + _plain(word.group()), word.end()

    def _string(self, text: str, at: int, is_last: bool) -> tuple[str, int] | None:
        """More of a text, or its end."""
        quote = self._quote
        if len(quote) > 1:  # nothing in it is escaped
            end = text.find(quote, at)
            if end == at:
                return self._end_string(at)
            end = len(text) - (0 if is_last else overlap(text[at:], (quote,))) if end < 0 else end
            return (json_text(text[at:end]), end) if end > at else None
        found = _IN_QUOTES[quote].search(text, at)
        end = len(text) if found is None else found.start()
        if end > at:
            return json_text(text[at:end]), end
        if end == len(text):
            return None
        if text[at] == quote:
            return self._end_string(at)
        letter = text[at + 1 : at + 2]
        enough = _PAIR_CHARS if letter == "u" else 2 + HEX.get(letter, 0)
        if (not letter or len(text) - at < enough) and not is_last:
            return None
        if not letter:
            return None
        scanner = Scanner(text, at + 1)
        return json_text(scanner.escape()), scanner.at

    def _end_string(self, at: int) -> tuple[str, int]:
        quote, self._quote = self._quote, ""
        return '"', at + len(quote)

    def _before_value(self) -> str:
        """What stands between a value and the one before, in a list."""
        return "" if self._open[-1][1] else self._separator()

    def _separator(self) -> str:
        """What stands before another of the innermost container's."""
        was_empty, self._is_empty = self._is_empty, False
        return "" if was_empty else ", "

    @staticmethod
    def _need(text: str, at: int, token: str) -> None:
        if text[at] != token:
            raise NoLiteral(f"no {token!r} at {at}")


def _plain(word: str) -> str:
    """A number, or one of the words that are values."""
    if word in WORDS:
        return as_json(WORDS[word])
    scanner = Scanner(word)
    if not NUMBER.fullmatch(word):
        raise NoLiteral(f"{word!r} is no value")
    return as_json(scanner.value())
