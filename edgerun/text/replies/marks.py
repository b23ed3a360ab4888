"""Finding marks in a text that is not whole yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache


@cache
def any_of(marks: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds the first of several marks."""
    return re.compile("|".join(map(re.escape, marks)))


def overlap(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a mark begins, but for the whole of it."""
    most = min(len(text), max(map(len, marks), default=1) - 1)
    return next((n for n in range(most, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)


def n_certain(text: str, marks: Sequence[str]) -> int:
    """How much of a text without marks in it can neither be part of one, nor space before one."""
    return len(text[: len(text) - overlap(text, marks)].rstrip()) if marks else len(text)
