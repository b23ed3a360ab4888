"""Cutting text into the words that BPE merges within: passes of patterns, each within the pieces of the one before.

What a pattern does not match stays as a piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from edgerun.text.characters import collapse, compile_ascii

Cut = Callable[[re.Pattern[str], str, Iterable[int]], Iterator[int]]
"""A pattern, a text and where its pieces end -> where they end afterwards."""


def cut_around(pattern: re.Pattern[str], text: str, ends: Iterable[int]) -> Iterator[int]:
    """Cut around each match."""
    start = 0
    for end in ends:
        at = start
        for match in pattern.finditer(text, start, end):
            first, last = match.span()
            if first > at:
                yield first
            if last > first:
                yield last
            at = last
        if at < end:
            yield end
        start = end


def cut_thousands(pattern: re.Pattern[str], text: str, ends: Iterable[int]) -> Iterator[int]:
    """Cut each match before every third character from its end, and nowhere else; as the pattern
    (?=(\\d{3})+(?!\\d)) would, which takes quadratic time."""
    start = 0
    for end in ends:
        for match in pattern.finditer(text, start, end):
            first, last = match.span()
            yield from (at for at in range(last - (last - first) // 3 * 3, last, 3) if at > start)
        yield end
        start = end


def cut_threes(pattern: re.Pattern[str], text: str, ends: Iterable[int]) -> Iterator[int]:
    """Cut after every third character of a match from its end, and there; what stands before it stays with its first
    characters, as llama.cpp has it."""
    start = 0
    for end in ends:
        at = start
        for match in pattern.finditer(text, start, end):
            first, last = match.span()
            for at in range(last - (last - first - 1) // 3 * 3, last + 1, 3):
                yield at
        if at < end:
            yield end
        start = end


@dataclass(frozen=True, slots=True)
class Rule:
    """One pass: a pattern, over the text as `view` shows it (see `characters`)."""

    pattern: str
    view: Callable[[str], str] = collapse
    cut: Cut = cut_around


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """A family's passes and its habits."""

    name: str
    rules: tuple[Rule, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever the merges say
    whole_lines: bool = False  # so is one of line breaks alone
    add_bos: bool = False  # unless the file says otherwise
    always_bos: bool = False  # whatever it says
    no_default_bos: bool = False
    byte_level: bool = True  # False: over characters, ▁ for spaces, <0xXX> for unknown ones

    def split(self, text: str) -> Iterator[str]:
        """The words of `text`, one at a time; joined they are the text."""
        ends: Iterable[int] = (len(text),)
        views: dict[Callable[[str], str], str] = {}
        for rule in self.rules:
            if rule.view not in views:
                views[rule.view] = rule.view(text)
            ends = rule.cut(_compiled(rule.pattern), views[rule.view], ends)
        start = 0
        for end in ends:
            yield text[start:end]
            start = end


_compiled = cache(compile_ascii)
