"""Ctrl-C at a chosen moment: KeyboardInterrupt before a line of some code that this thread runs."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import edgerun

_ROOT = Path(edgerun.__file__).parent


@contextmanager
def interrupts(within: Callable[[str], bool], strikes: Callable[[], bool]) -> Iterator[None]:
    """In files that `within` names, `strikes()` is asked before every line; KeyboardInterrupt where it says so."""

    def on_line(frame: FrameType) -> None:
        if strikes():
            raise KeyboardInterrupt

    with _lines(within, on_line):
        yield


@contextmanager
def _lines(within: Callable[[str], bool], on_line: Callable[[FrameType], None]) -> Iterator[None]:
    """`on_line` before every line in files that `within` names."""

    def line(frame: FrameType, event: str, value: Any) -> Any:
        if event == "line" and frame.f_lasti not in _ends_of_with(frame.f_code):
            on_line(frame)
        return line

    def enter(frame: FrameType, event: str, value: Any) -> Any:
        return line if within(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


class Interrupts:
    """The n-th line that begins in some folders of edgerun. folders: those in which lines count."""

    def __init__(self, *folders: str) -> None:
        self._prefixes = tuple(f"{_ROOT / folder}/" for folder in folders)
        self._left = 0
        self._seen: list[tuple[CodeType, int]] = []
        self.where = ""

    def moments(self, run: Callable[[], object], part: str = "") -> list[int]:
        """Those n at which `run` begins a line for the first time, or for the first time since a function of the name
        `part` was last entered."""
        self._seen.clear()
        self._traced(run, sys.maxsize)
        known: set[tuple[CodeType, int]] = set()
        found, before = [], None
        for n, line in enumerate(self._seen):
            if line[0].co_name == part and before is not line[0] and line[1] < _second_line(line[0]):
                known.clear()
            if line not in known:
                found.append(n)
            known.add(line)
            before = line[0]
        return found

    def at(self, n: int, run: Callable[[], object]) -> bool:
        """`run` until its n-th line (from 0); whether it came so far. Says `where` that was."""
        self.where = ""
        try:
            self._traced(run, n)
        except KeyboardInterrupt:
            return True
        return bool(self.where)

    def _traced(self, run: Callable[[], object], lines: int) -> None:
        self._left = lines
        with _lines(lambda file: file.startswith(self._prefixes), self._line):
            run()

    def _line(self, frame: FrameType) -> None:
        if self._left == 0:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
            raise KeyboardInterrupt
        self._left -= 1
        self._seen.append((frame.f_code, frame.f_lineno))


@cache
def _second_line(code: CodeType) -> int:
    """The line after the first one that a function runs."""
    return sorted({line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno})[1]


@cache
def _ends_of_with(code: CodeType) -> frozenset[int]:
    """Where a `with` block is left as it should be: no signal is handled between its last call and its `__exit__`, so
    that an interrupt there would show what cannot happen, a lock that was never released."""
    found, ops = set(), list(dis.get_instructions(code))
    for i in range(len(ops) - 3):
        nones = all(each.opname == "LOAD_CONST" and each.argval is None for each in ops[i : i + 3])
        if nones and ops[i + 3].opname in ("PRECALL", "CALL", "CALL_FUNCTION"):
            found.update(each.offset for each in ops[i : i + 4])
            while i and ops[i - 1].opname in ("SWAP", "ROT_TWO", "NOP"):  # what is returned lies under it
                i -= 1
                found.add(ops[i].offset)
    return frozenset(found)
