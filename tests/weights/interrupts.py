"""Ctrl-C at a chosen moment: KeyboardInterrupt at the n-th line that this thread begins in some folders of edgerun."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import edgerun

_ROOT = Path(edgerun.__file__).parent


class Interrupts:
    """folders: of edgerun, in which lines count."""

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
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, value: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._prefixes) else None

    def _line(self, frame: FrameType, event: str, value: Any) -> Any:
        if event != "line" or frame.f_lasti in _ends_of_with(frame.f_code):
            return self._line
        if self._left == 0:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
            raise KeyboardInterrupt
        self._left -= 1
        self._seen.append((frame.f_code, frame.f_lineno))
        return self._line


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
