"""Kinds of arguments: what is accepted, in which bounds, and how the command line writes it.

`check` takes whatever a caller may pass and gives a value of the plain type (`int`, not `numpy.int64`; `str`, not
a subclass that may behave otherwise); `parse` does the same for text. Both raise UsageError, which names the argument,
what it may be, and what it was.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from edgerun.errors import UsageError
from edgerun.options.refusal import refused
from edgerun.units import parse_size_bytes

LARGEST = 2**63 - 1
MOST_ITEMS = 1 << 20
Words = tuple[str | None, ...]


class Kind(ABC):
    """One kind of argument. `metavar`: how the command line's help calls a value."""

    metavar = "TEXT"

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What is accepted, as it stands after "must be"."""

    @abstractmethod
    def check(self, name: str, value: object) -> Any:
        """The value as a plain one. UsageError for what is not accepted."""

    def parse(self, name: str, text: str) -> Any:
        """The value that a text stands for. UsageError for what is not accepted."""
        return self.check(name, text)


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number in bounds that both count, or one of `words`, which are taken as they are."""

    low: int
    high: int = LARGEST
    words: Words = ()
    metavar = "INTEGER"

    @property
    def wanted(self) -> str:
        upper = " on" if self.high == LARGEST else f" to {self.high}"
        return _or_words(f"a whole number from {self.low}{upper}", self.words)

    def check(self, name: str, value: object) -> Any:
        if _is_word(value, self.words):
            return as_text(value)
        number = as_whole(value)
        if number is None or not self.low <= number <= self.high:
            raise refused(name, self.wanted, value)
        return number

    def parse(self, name: str, text: str) -> Any:
        if text in self.words:
            return text
        try:
            return self.check(name, int(text))
        except ValueError:  # UsageError is one too: the text is what the user wrote
            raise refused(name, self.wanted.removesuffix(" or None"), text) from None  # left out, it is None


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in bounds that both count (the lower one not if `above`), or one of `words`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    words: Words = ()
    metavar = "FLOAT"

    @property
    def wanted(self) -> str:
        if math.isinf(self.low):
            return _or_words("a finite number", self.words)
        lower = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        upper = f" to {self.high:g}" if not math.isinf(self.high) else "" if self.above else " on"
        return _or_words(f"a number {lower}{upper}", self.words)

    def check(self, name: str, value: object) -> Any:
        if _is_word(value, self.words):
            return as_text(value)
        number = as_number(value)
        good = number is not None and self.low <= number <= self.high and not (self.above and number == self.low)
        if not good:
            raise refused(name, self.wanted, value)
        return number

    def parse(self, name: str, text: str) -> Any:
        if text in self.words:
            return text
        try:
            return self.check(name, float(text))
        except ValueError:
            raise refused(name, self.wanted.removesuffix(" or None"), text) from None  # left out, it is None


@dataclass(frozen=True)
class Flag(Kind):
    """True or False, nothing that merely counts as one; on or off on the command line."""

    metavar = "on|off"

    @property
    def wanted(self) -> str:
        return "True or False"

    def check(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise refused(name, self.wanted, value)
        return value

    def parse(self, name: str, text: str) -> bool:
        if text not in ("on", "off"):
            raise refused(name, "on or off", text)
        return text == "on"


@dataclass(frozen=True)
class Text(Kind):
    """A text, a name of something, that is neither empty nor endless, or one of `words`."""

    most: int = 1000  # characters
    words: Words = ()

    @property
    def wanted(self) -> str:
        return _or_words(f"a text of 1 to {self.most} characters", self.words)

    def check(self, name: str, value: object) -> Any:
        if _is_word(value, self.words):
            return as_text(value)
        text = as_text(value)
        if not text or len(text) > self.most:
            raise refused(name, self.wanted, value)
        return text


@dataclass(frozen=True)
class Choice(Kind):
    """One of some words."""

    words: tuple[str, ...]

    @property
    def wanted(self) -> str:
        return f"one of {', '.join(self.words)}"

    def check(self, name: str, value: object) -> str:
        text = as_text(value)
        if text not in self.words:
            raise refused(name, self.wanted, value)
        return text


@dataclass(frozen=True)
class Size(Kind):
    """A number of bytes, or a text as "2G", which becomes one; "auto" stays."""

    metavar = "SIZE|auto"

    @property
    def wanted(self) -> str:
        return '"auto", a size like "2G" or a number of bytes from 1 on'

    def check(self, name: str, value: object) -> Any:
        text = as_text(value)
        if text == "auto":
            return text
        try:
            n_bytes = as_whole(value) if text is None else parse_size_bytes(text)
        except UsageError:
            n_bytes = None
        if n_bytes is None or not 1 <= n_bytes <= LARGEST:
            raise refused(name, self.wanted, value)
        return n_bytes


@dataclass(frozen=True)
class Callback(Kind):
    """Something to call."""

    @property
    def wanted(self) -> str:
        return "a callable"

    def check(self, name: str, value: object) -> Callable[..., Any]:
        if not callable(value):
            raise refused(name, self.wanted, value)
        return value


@dataclass(frozen=True)
class Texts(Kind):
    """One text or a sequence of texts, none of them empty -> a tuple."""

    @property
    def wanted(self) -> str:
        return "a text or a sequence of texts, none of them empty"

    def check(self, name: str, value: object) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else items_of(value)
        return _all(self, name, value, items, [text for text in map(as_text, items or ()) if text])


@dataclass(frozen=True)
class Callables(Kind):
    """A sequence of callables -> a tuple."""

    @property
    def wanted(self) -> str:
        return "a sequence of callables"

    def check(self, name: str, value: object) -> tuple[Callable[..., Any], ...]:
        items = items_of(value)
        return _all(self, name, value, items, [each for each in items or () if callable(each)])


@dataclass(frozen=True)
class TokenBias(Kind):
    """Token ids to what is added to their logits: finite, or -inf, which forbids. -> a dict"""

    @property
    def wanted(self) -> str:
        return "a mapping of token ids to numbers below infinity"

    def check(self, name: str, value: object) -> dict[int, float]:
        if not isinstance(value, Mapping):
            raise refused(name, self.wanted, value)
        checked = {}
        for key, amount in value.items():
            text = as_text(key)  # JSON has no other keys
            token = int(text) if text is not None and text.isdecimal() and len(text) < 20 else as_whole(key)
            number = -math.inf if isinstance(amount, Real) and amount == -math.inf else as_number(amount)
            if token is None or token < 0 or number is None:
                raise refused(name, self.wanted, {key: amount})
            checked[token] = number
        return checked


def as_whole(value: object) -> int | None:
    """A plain int of any whole number (numpy's too), but not of True or False; None for anything else."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else int.__int__(value)
    return int(value) if isinstance(value, Integral) else None


def as_number(value: object) -> float | None:
    """A plain finite float of any real number, but not of True or False; None for anything else."""
    if isinstance(value, bool):
        return None
    whole = as_whole(value)
    try:
        if whole is not None:
            number = float(whole)
        elif isinstance(value, float):
            number = float.__float__(value)
        elif isinstance(value, Real):
            number = float(value)
        else:
            return None
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_text(value: object) -> str | None:
    """A plain str of any, also of a subclass's; None for anything else."""
    return str.__str__(value) if isinstance(value, str) else None


def items_of(value: object) -> list[Any] | None:
    """The items of a list, tuple or other sequence; None for anything else: for text and bytes too, and for so many
    (`range(10**9)`) that they cannot be meant."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        return None
    return list(value) if len(value) <= MOST_ITEMS else None


def _all(kind: Kind, name: str, value: object, items: list[Any] | None, found: list[Any]) -> tuple[Any, ...]:
    """What was found acceptable of a sequence's items, if that is all of them."""
    if items is None or len(found) != len(items):
        raise refused(name, kind.wanted, value)
    return tuple(found)


def _is_word(value: object, words: Words) -> bool:
    return (value is None and None in words) or (isinstance(value, str) and str.__str__(value) in words)


def _or_words(wanted: str, words: Words) -> str:
    others = ["None" if word is None else f'"{word}"' for word in words]
    return " or ".join([wanted, *others])
