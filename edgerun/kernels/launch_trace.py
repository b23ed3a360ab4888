"""Who computed what and when: spans that the pool's threads note while a trace is made (`pool_kernels._call`).

Each thread has memory of its own for the latest spans; what is not collected before it is full is overwritten, and
counted as lost. Collecting copies memory and no more: when all is over a span's name is looked up, and what a counter
said becomes seconds, by what it and the clock said together at the begin and at the end.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.events import Span
from edgerun.kernels.program import Program

I64 = NDArray[np.int64]

_SPANS = 1 << 14  # of a thread, some tens of tokens of a small model
_SPAN, _AT, _LINE, _FIRST, _LAST = 32 // 8, 64 // 8, 128 // 8, 64 // 8, 88 // 8  # in slots, see `pool_kernels`
_MOST_PROGRAMS = 64  # that are remembered: recordings of a decoder and of its experts
_MOST_COLLECTED = 4_000_000  # spans: 128 MB


class LaunchTrace:
    """Spans of `threads` threads. name_at: the kernel at an address."""

    def __init__(self, threads: int, name_at: Callable[[int], str]) -> None:
        stride = _AT + _SPAN * _SPANS
        room: I64 = np.full(2 * _LINE + threads * stride, 0, np.int64)  # now, and not page by page meanwhile
        unaligned = -room.ctypes.data % (8 * _LINE) // 8
        self._memory = room[unaligned : unaligned + _LINE + threads * stride]
        self._memory[:2] = 8 * stride, _SPANS
        self._threads = self._memory[_LINE:].reshape(threads, stride)
        self._noted = ctypes.c_int64.from_address(self._threads.ctypes.data)  # by the first thread
        self._seen = [0] * threads
        self._collected: list[list[I64]] = [[] for _ in range(threads)]  # (spans, 4) each
        self._n_collected = 0
        self._name_at = name_at
        self._programs: dict[int, Program] = {}
        self._alone: list[Span] = []
        self.address = int(self._memory.ctypes.data)
        self.lost = 0  # spans that were overwritten before somebody collected them, or were too many

    def runs(self, program: Program) -> None:
        """Its launches are about to run: names are found in it."""
        if len(self._programs) < _MOST_PROGRAMS:
            self._programs.setdefault(program.rows_address, program)

    def time(self, name: str, function: Callable[[int, int, int], Any], arguments: int, items: int) -> None:
        """Run a launch that the caller does alone, past the pool."""
        began = time.perf_counter()
        function(arguments, 0, items)
        self._alone.append(Span("compute 1", name, began, time.perf_counter()))

    def collect_when_full(self) -> None:
        """`collect`, if memory is half full: the first thread's, which has a part in every launch. After every step."""
        if self._noted.value - self._seen[0] > _SPANS // 2:
            self.collect()

    def collect(self) -> None:
        """Keep what was noted since the last time. No operation runs meanwhile."""
        for thread, memory in enumerate(self._threads):
            noted, rows = int(memory[0]), memory[_AT:].reshape(_SPANS, _SPAN)
            fresh = min(noted - self._seen[thread], _SPANS)
            if self._n_collected + fresh > _MOST_COLLECTED:
                fresh = 0
            self.lost += noted - self._seen[thread] - fresh
            self._seen[thread] = noted
            low, high = (noted - fresh) % _SPANS, noted % _SPANS
            if fresh and low < high:
                self._collected[thread].append(rows[low:high].copy())
            elif fresh:
                self._collected[thread].append(np.concatenate([rows[low:], rows[:high]]))
            self._n_collected += fresh

    def spans(self) -> list[Span]:
        """All that were collected, in no order."""
        first_ticks, first_s, tick_s = self._pace()
        labels: dict[tuple[int, int], str] = {}
        spans = list(self._alone)
        for thread, blocks in enumerate(self._collected):
            for kernel, arguments, began, ended in np.concatenate(blocks).tolist() if blocks else ():
                label = labels.get((kernel, arguments))
                if label is None:
                    label = labels[kernel, arguments] = self._label(kernel, arguments)
                begin_s, end_s = (first_s + tick_s * (each - first_ticks) for each in (began, ended))
                spans.append(Span(f"compute {thread + 1}", label, begin_s, end_s))
        return spans

    def _pace(self) -> tuple[int, float, float]:
        """The counter and the clock's seconds at the begin, and the seconds of a tick since."""
        (first, *began), (last, *ended) = (
            self._memory[_FIRST : _FIRST + 3].tolist(),
            self._memory[_LAST : _LAST + 3].tolist(),
        )
        first_s, last_s = began[0] + began[1] / 1e9, ended[0] + ended[1] / 1e9
        return first, first_s, (last_s - first_s) / (last - first) if last > first else 0.0

    def _label(self, kernel: int, arguments: int) -> str:
        """The kernel's name, and where that is known what it was part of."""
        name = self._name_at(kernel)
        for program in self._programs.values():
            section = program.section_at(arguments)
            if section is not None:
                return f"{name}, {section}" if section else name
        return name
