"""Where nothing can be read: the processor's power by its data sheet times how busy this process keeps it. An estimate,
which every figure made of it says."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgerun.profiling.energy.meter import Reading


class EstimateSource:
    """`Source` that reads nothing: idle_w all the time, and of tdp_w - idle_w the share that this process's threads are
    of `cores`."""

    is_estimate = True

    def __init__(
        self,
        tdp_w: float,
        cores: int,
        *,
        idle_w: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.method = f"estimate: {tdp_w:g} W of the data sheet x the share of {cores} cores that is busy"
        self._tdp_w, self._idle_w, self._cores = tdp_w, idle_w, cores
        self._clock, self._cpu_clock = clock, cpu_clock
        self._began, self._cpu_began = clock(), cpu_clock()

    def read(self) -> Reading:
        seconds, busy = self._clock() - self._began, (self._cpu_clock() - self._cpu_began) / self._cores
        busy = min(busy, seconds)
        joules = self._idle_w * seconds + (self._tdp_w - self._idle_w) * busy
        return Reading(joules, {"processor (estimate)": joules})

    def close(self) -> None:
        """Nothing is open."""
