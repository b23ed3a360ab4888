"""Values as models write them in calls: JSON, Python's literals, and those of Gemma's own quotes and bare keys."""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEEPEST = 64
_SPACE = re.compile(r"\s*")
NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
WORD = re.compile(r"[^\s,:=()\[\]{}'\"<>]+")
WORDS: dict[str, Any] = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_SURROGATE = re.compile("[\ud800-\udfff]")
QUOTES = ('<|"|>', '"', "'")
_OUTSIDE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
HEX = {"x": 2, "u": 4, "U": 8}
CLOSING = {"[": "]", "(": ")", "{": "}"}


class NoLiteral(Exception):
    """What stands there is no value. (Of this package alone: whoever reads calls takes it as text then.)"""


class Scanner:
    """Reads values and names from `text`, from `at` on."""

    def __init__(self, text: str, at: int = 0) -> None:
        self.text = text
        self.at = at

    def skip(self) -> None:
        """Whitespace."""
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def has(self, token: str) -> bool:
        """Whether `token` comes next, after whitespace; then it is passed."""
        self.skip()
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def need(self, token: str) -> None:
        """NoLiteral unless `token` comes next."""
        if not self.has(token):
            raise NoLiteral(f"no {token!r} at {self.at}")

    def word(self) -> str:
        """A name."""
        self.skip()
        found = WORD.match(self.text, self.at)
        if found is None:
            raise NoLiteral(f"no name at {self.at}")
        self.at = found.end()
        return found.group()

    def is_over(self) -> bool:
        """Whether nothing but whitespace follows."""
        self.skip()
        return self.at == len(self.text)

    def value(self, depth: int = 0) -> Any:
        """A value of whatever kind. NoLiteral."""
        if depth > DEEPEST:
            raise NoLiteral("it nests too deeply")
        self.skip()
        quote = next((quote for quote in QUOTES if self.text.startswith(quote, self.at)), None)
        if quote is not None:
            return self.string(quote)
        opening = self.text[self.at : self.at + 1]
        if opening == "{":
            return self.mapping(depth)
        if opening in ("[", "("):
            return self._list(CLOSING[opening], depth)
        number = NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            return _number(number.group())
        word = self.word()
        if word not in WORDS:
            raise NoLiteral(f"{word!r} is no value")
        return WORDS[word]

    def mapping(self, depth: int = 0) -> dict[str, Any]:
        """`{key: value, ...}`, keys quoted or not."""
        self.need("{")
        found: dict[str, Any] = {}
        while not self.has("}"):
            if found:
                self.need(",")
                if self.has("}"):
                    break
            self.skip()
            quote = next((quote for quote in QUOTES if self.text.startswith(quote, self.at)), None)
            key = self.word() if quote is None else self.string(quote)
            self.need(":")
            found[key] = self.value(depth + 1)
        return found

    def _list(self, closing: str, depth: int) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while not self.has(closing):
            if found:
                self.need(",")
                if self.has(closing):
                    break
            found.append(self.value(depth + 1))
        return found

    def string(self, quote: str) -> str:
        start = self.at = self.at + len(quote)
        if len(quote) > 1:  # nothing in it is escaped
            end = self.text.find(quote, start)
            if end < 0:
                raise NoLiteral("a text without end")
            self.at = end + len(quote)
            return self.text[start:end]
        pieces = []
        while True:
            end = self.text.find(quote, self.at)
            if end < 0:
                raise NoLiteral("a text without end")
            slash = self.text.find("\\", self.at, end)
            if slash < 0:
                pieces.append(self.text[self.at : end])
                self.at = end + 1
                return "".join(pieces)
            pieces.append(self.text[self.at : slash])
            self.at = slash + 1
            pieces.append(self.escape())

    def escape(self) -> str:
        """What follows a backslash."""
        letter = self.text[self.at : self.at + 1]
        if not letter:
            raise NoLiteral("a text without end")
        self.at += 1
        if letter not in HEX:
            return _ESCAPES.get(letter, letter)
        digits = self.text[self.at : self.at + HEX[letter]]
        if not re.fullmatch(f"[0-9a-fA-F]{{{HEX[letter]}}}", digits) or int(digits, 16) > 0x10FFFF:
            return "\\" + letter
        self.at += len(digits)
        code = int(digits, 16)
        if 0xD800 <= code < 0xDC00:  # JSON writes characters beyond U+FFFF as two
            low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.text, self.at)
            if low is not None:
                self.at = low.end()
                return chr(0x10000 + ((code - 0xD800) << 10) + int(low.group(1), 16) - 0xDC00)
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def as_json(value: Any) -> str:
    """JSON as calls' arguments have it: letters as they are, but no half of a character. NoLiteral for what nests too
    deeply."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise NoLiteral(str(error)) from error
    return _SURROGATE.sub("\ufffd", text)


def read_json(text: str) -> Any:
    """A JSON document. NoLiteral for what is none."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise NoLiteral(str(error)) from error


def _finite(text: str) -> float:
    """A number that JSON can hold. ValueError for others."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number of JSON")
    return number


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:  # also for more digits than Python takes
        return float(text)


class JsonEnd:
    """Finds where the JSON object or list that begins at `start` ends, in a text that grows; with a `depth` of 1,
    one of which `start` lies within. What is no JSON ends somewhere, or never."""

    def __init__(self, start: int, depth: int = 0) -> None:
        self._at = start  # so far the text was looked at
        self._depth = depth
        self._in_string = False

    def find(self, text: str) -> int | None:
        """The end; None: it goes on. `text` begins with what it was before."""
        while True:
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(text, self._at)
            if found is None:
                self._at = len(text)
                return None
            char = found.group()
            if char == "\\" and found.end() == len(text):  # what it escapes is yet to come
                self._at = found.start()
                return None
            self._at = found.end() + (char == "\\")
            if char == '"':
                self._in_string = not self._in_string
            elif char != "\\":
                self._depth += 1 if char in "{[" else -1
                if self._depth <= 0:
                    return self._at
