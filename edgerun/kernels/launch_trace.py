"""Who computed what and when: spans that the pool's threads note while a trace is made (`pool_kernels._call`).

Each thread has memory of its own for the latest spans; what is not taken before it is full is overwritten, and counted
as lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.events import Span
from edgerun.kernels.program import Program

_SPANS = 1 << 14  # of a thread, about ten tokens of a small model: taken after every step
_SPAN, _AT, _LINE = 64 // 8, 64 // 8, 128 // 8  # in slots, see `pool_kernels`
_MOST_PROGRAMS = 64  # that are remembered: recordings of a decoder and of its experts


class LaunchTrace:
    """Spans of `threads` threads. name_at: the kernel at an address."""

    def __init__(self, threads: int, name_at: Callable[[int], str]) -> None:
        stride = _AT + _SPAN * _SPANS
        self._memory: NDArray[np.int64] = np.zeros(_LINE + threads * stride, np.int64)
        self._memory[:2] = 8 * stride, _SPANS
        self._threads = self._memory[_LINE:].reshape(threads, stride)
        self._taken = [0] * threads
        self._name_at = name_at
        self._names: dict[int, str] = {}
        self._programs: dict[int, Program] = {}
        self._alone: list[Span] = []
        self.address = int(self._memory.ctypes.data)
        self.lost = 0  # spans that were overwritten before somebody took them

    def runs(self, program: Program) -> None:
        """Its launches are about to run: names are found in it."""
        if len(self._programs) < _MOST_PROGRAMS:
            self._programs.setdefault(program.rows_address, program)

    def time(self, name: str, function: Callable[[int, int, int], Any], arguments: int, items: int) -> None:
        """Run a launch that the caller does alone, past the pool."""
        began = time.perf_counter()
        function(arguments, 0, items)
        self._alone.append(Span("compute 1", name, began, time.perf_counter()))

    def take(self) -> list[Span]:
        """All spans since the last time, in no order. No operation runs meanwhile."""
        spans, self._alone = self._alone, []
        for thread, memory in enumerate(self._threads):
            noted = int(memory[0])
            fresh = min(noted - self._taken[thread], _SPANS)
            self.lost += noted - self._taken[thread] - fresh
            rows = memory[_AT:].reshape(_SPANS, _SPAN)
            for index in range(noted - fresh, noted):
                kernel, arguments, _, _, *times = rows[index % _SPANS].tolist()
                begin_s, end_s = times[0] + times[1] / 1e9, times[2] + times[3] / 1e9
                spans.append(Span(f"compute {thread + 1}", self._label(kernel, arguments), begin_s, end_s))
            self._taken[thread] = noted
        return spans

    def _label(self, kernel: int, arguments: int) -> str:
        """The kernel's name, and where that is known what it was part of."""
        name = self._names.get(kernel)
        if name is None:
            name = self._names[kernel] = self._name_at(kernel)
        for program in self._programs.values():
            section = program.section_at(arguments)
            if section is not None:
                return f"{name}, {section}" if section else name
        return name
