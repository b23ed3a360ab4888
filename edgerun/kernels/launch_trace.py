"""Who computed what and when: spans that the pool's threads note while a trace is made (`pool_kernels._done`, `_help`).

Each thread has memory of its own for the latest spans; what is not collected before it is full is overwritten, and
counted as lost. Collecting copies memory and no more: when all is over a span's name is looked up, and what a counter
said becomes seconds, by what it and the clock said together at the begin and at the end.

The thread that publishes operations notes only when its part of each ended. It began when the one before was done by
all threads, as their own spans tell. A program begins with a row without a kernel.
"""

from __future__ import annotations

import ctypes
import itertools
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
    """Spans of `threads` threads. name_at: the kernel at an address; memory_of: so many slots."""

    def __init__(self, threads: int, name_at: Callable[[int], str], memory_of: Callable[[int], I64]) -> None:
        stride = _AT + _SPAN * _SPANS
        room = memory_of(2 * _LINE + threads * stride)
        room[:] = 0
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
        self._latest: Program | None = None
        self._alone: list[Span] = []
        self.address = int(self._memory.ctypes.data)
        self.lost = 0  # spans that were overwritten before somebody collected them, or were too many

    def runs(self, program: Program | None = None) -> None:
        """Launches are about to run, those of a program, in which their names are found. What was noted is collected
        when memory is half full: the first thread's, which has a part in every launch."""
        if program is not None and program is not self._latest:
            self._latest = program
            if len(self._programs) < _MOST_PROGRAMS:
                self._programs.setdefault(program.rows_address, program)
        if self._noted.value - self._seen[0] > _SPANS // 2:
            self.collect()

    def time(self, name: str, function: Callable[[int, int, int], Any], arguments: int, items: int) -> None:
        """Run a launch that the caller does alone, past the pool."""
        began = time.perf_counter()
        function(arguments, 0, items)
        self._alone.append(Span("compute 1", name, began, time.perf_counter()))

    def collect(self) -> None:
        """Keep what was noted since the last time. No operation runs meanwhile."""
        for thread, memory in enumerate(self._threads):
            noted, rows = int(memory[0]), memory[_AT:].reshape(_SPANS, _SPAN)
            fresh = min(noted - self._seen[thread], _SPANS)
            if self._n_collected + fresh > _MOST_COLLECTED:
                fresh = 0
            lost = noted - self._seen[thread] - fresh
            if lost:
                self.lost += lost
                self._collected[thread].append(np.zeros((1, _SPAN), np.int64))  # when the next began is unknown
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

        def seconds(ticks: int) -> float:
            return first_s + tick_s * (ticks - first_ticks)

        labels: dict[tuple[int, int], str] = {}
        shared: dict[int, str] = {}  # operations that helpers have a part in, by their number
        spans = list(self._alone)
        helped = [[row for row in _rows(blocks) if row[2]] for blocks in self._collected[1:]]
        for rows in helped:  # who had the next operation at once has not noted when it ended this one
            for row, following in itertools.pairwise(rows):
                row[3] = row[3] or following[1]
        ends: dict[int, int] = {}  # when helpers have ended an operation
        for _, _, number, ended in itertools.chain(*helped):
            ends[number] = max(ended, ends.get(number, 0))
        began = 0  # unknown
        for kernel, arguments, number, ended in _rows(self._collected[0]):
            if kernel:
                label = labels.get((kernel, arguments))
                if label is None:
                    label = labels[kernel, arguments] = self._label(kernel, arguments)
                if number:
                    shared[number] = label
                if began:
                    spans.append(Span("compute 1", label, seconds(min(began, ended)), seconds(ended)))
            began = max(ended, ends.get(number, 0))
        for thread, rows in enumerate(helped, 2):
            spans += [
                Span(f"compute {thread}", shared[number], seconds(began), seconds(max(began, ended)))
                for _, began, number, ended in rows
                if number in shared
            ]
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


def _rows(blocks: list[I64]) -> list[list[int]]:
    return np.concatenate(blocks).tolist() if blocks else []
