"""Ctrl-C at a chosen moment: KeyboardInterrupt before the n-th line of some code that this thread runs."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FrameType
from typing import Any


@contextmanager
def interrupts(within: Callable[[str], bool], strikes: Callable[[], bool]) -> Iterator[None]:
    """In files that `within` names, `strikes()` is asked before every line; KeyboardInterrupt where it says so.

    Lines of `with` statements are left out: a tracer sees them once more on the way out of the block, before `__exit__`
    is called, where Python itself looks for no signal."""

    def on_line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and frame.f_lineno not in _with_lines(frame.f_code) and strikes():
            raise KeyboardInterrupt
        return on_line

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        return on_line if within(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


@cache
def _with_lines(code: CodeType) -> frozenset[int]:
    return frozenset(
        each.positions.lineno
        for each in dis.get_instructions(code)
        if each.opname in ("BEFORE_WITH", "LOAD_SPECIAL") and each.positions and each.positions.lineno
    )
