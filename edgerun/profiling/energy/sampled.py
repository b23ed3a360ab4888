"""Joules from a sensor that only tells watts: a thread asks it and adds up, trapezoid by trapezoid."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping

from edgerun.errors import EdgerunError, ReadError
from edgerun.profiling.energy.meter import Reading

INTERVAL_S = 0.1  # of samples: sensors of batteries change a few times a second at most


class Integral:
    """The sum of samples that somebody adds. The power between two is taken to change evenly."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Mapping[str, float]] | None = None
        self._joules: dict[str, float] = {}

    def add(self, watts: Mapping[str, float]) -> None:
        """One more sample, of now. Those of a domain that is new begin with it."""
        with self._lock:
            at_s = self._clock()
            if self._last is not None:
                before_s, before = self._last
                for name, power in watts.items():
                    mean = (power + before.get(name, power)) / 2
                    self._joules[name] = self._joules.get(name, 0.0) + mean * (at_s - before_s)
            self._last = at_s, dict(watts)

    def joules(self) -> tuple[dict[str, float], float | None]:
        """By domain, since the first sample, and when the last one was."""
        with self._lock:
            return dict(self._joules), None if self._last is None else self._last[0]


class PowerSampler:
    """`Source` over a function that reads watts by domain. `total`: the domains that do not contain each other, None:
    all. Samples are taken every `interval_s` by a thread (0: only when somebody reads), and whenever it is read.

    Raises what `watts` raises for the first sample.
    """

    def __init__(
        self,
        method: str,
        watts: Callable[[], Mapping[str, float]],
        *,
        total: tuple[str, ...] | None = None,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.method = method
        self.is_estimate = False
        self._watts = watts
        self._total = total
        self._integral = Integral(clock)
        self._failed: list[EdgerunError] = []
        self._stop = threading.Event()
        self._finalizer = weakref.finalize(self, self._stop.set)
        self._integral.add(watts())
        if interval_s > 0:
            state = (watts, self._integral, self._stop, interval_s, self._failed)
            threading.Thread(target=_sample, args=state, name="edgerun-energy", daemon=True).start()

    def read(self) -> Reading:
        if self._failed:
            raise self._failed[0]
        self._integral.add(self._watts())
        domains, at_s = self._integral.joules()
        counted = domains.keys() if self._total is None else self._total
        return Reading(sum(domains[name] for name in counted if name in domains), domains, at_s)

    def close(self) -> None:
        self._stop.set()


def _sample(
    watts: Callable[[], Mapping[str, float]],
    integral: Integral,
    stop: threading.Event,
    interval_s: float,
    failed: list[EdgerunError],
) -> None:
    while not stop.wait(interval_s):
        try:
            integral.add(watts())
        except EdgerunError as error:
            failed.append(error)
            return
        except (OSError, ValueError) as error:
            failed.append(ReadError(f"the power sensor cannot be read any more: {error}"))
            return
