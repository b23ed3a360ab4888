"""Whether the machine was quiet enough for a measurement to count."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from edgerun.device import usable_cpus
from edgerun.planning.rates import MOST_OTHERS
from edgerun.profiling.figures import deviation, mean

MOST_VARIATION = 0.05  # of the mean that repetitions may differ by


@dataclass(frozen=True)
class Noise:
    """others_share: of the processors, what others took while it was measured, the hypervisor's too; variation: the
    repetitions' deviation by their mean, None with one. load: of a minute, at the end."""

    others_share: float
    variation: float | None
    load: float | None
    cores: int

    @property
    def is_noisy(self) -> bool:
        """Whether it is no result."""
        return self.others_share > MOST_OTHERS or (self.variation or 0.0) > MOST_VARIATION

    def __str__(self) -> str:
        said = [f"others took {100 * self.others_share:.0f} % of {self.cores} processors"]
        if self.variation is not None:
            said.append(f"repetitions differ by {100 * self.variation:.1f} %")
        if self.load is not None:
            said.append(f"load {self.load:.1f}")
        return ", ".join(said)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "is_noisy": self.is_noisy}


class NoiseMeter:
    """Watches the processors from when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._busy, self._own = _busy_s(), _own_s()

    @property
    def others_share(self) -> float:
        """So far."""
        seconds = max(time.perf_counter() - self._began, 1e-6)
        others = (_busy_s() - self._busy) - (_own_s() - self._own)
        return min(1.0, max(0.0, others / (seconds * (os.cpu_count() or 1))))

    def end(self, rates: Sequence[float]) -> Noise:
        """What was seen; `rates`: of the repetitions."""
        return noise_of(self.others_share, rates)


def noise_of(others_share: float, rates: Sequence[float]) -> Noise:
    """Of repetitions of these rates, in whose time others took so much."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Noise(others_share, variation(rates), load, len(usable_cpus()))


def variation(rates: Sequence[float]) -> float | None:
    """Their deviation by their mean; None of one."""
    varied, middle = deviation(rates), mean(rates)
    return None if varied is None or not middle else varied / middle


def _busy_s() -> float:
    """Seconds that all processors have worked, for whomever."""
    times = psutil.cpu_times()
    return float(sum(times)) - float(times.idle) - float(getattr(times, "iowait", 0.0)) - _guests(times)


def _guests(times: object) -> float:
    """Counted within user time already."""
    return float(getattr(times, "guest", 0.0)) + float(getattr(times, "guest_nice", 0.0))


def _own_s() -> float:
    """Of this process and its children, those that still run too."""
    spent = 0.0
    process = psutil.Process()
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.Error:  # it ended meanwhile
            continue
        spent += times.user + times.system
    own = process.cpu_times()
    return spent + getattr(own, "children_user", 0.0) + getattr(own, "children_system", 0.0)
