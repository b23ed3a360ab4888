"""Watts that another program tells, a line at a time, while it runs: an external meter, or Apple's powermetrics."""

from __future__ import annotations

import re
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue

from edgerun.errors import ReadError
from edgerun.profiling.energy.meter import Reading
from edgerun.profiling.energy.sampled import Integral

_FIRST_S = 5.0  # that a program may take to tell something
_MOST_LINE = 4096  # characters that are looked at

Parse = Callable[[str], Mapping[str, float]]  # a line -> watts by domain, nothing for a line of something else


def number(line: str) -> dict[str, float]:
    """A line that is a number of watts."""
    try:
        watts = float(line.strip().removesuffix("W").strip())
    except ValueError:
        return {}
    return {"meter": watts} if 0 <= watts < 1e6 else {}


_POWERMETRICS = re.compile(r"(CPU|GPU|ANE|Combined) Power(?: \([^)]*\))?: (\d+) mW")


def powermetrics(line: str) -> dict[str, float]:
    """A line of `powermetrics`: "CPU Power: 1234 mW"."""
    found = _POWERMETRICS.match(line.strip())
    return {found[1].lower(): int(found[2]) / 1e3} if found else {}


class WatchedSource:
    """`Source` over the lines of a program. `total`: domains that do not contain each other. ReadError when it tells no
    watts within five seconds."""

    is_estimate = False

    def __init__(
        self,
        method: str,
        lines: Iterable[str],
        parse: Parse,
        *,
        total: tuple[str, ...],
        stop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        first_s: float = _FIRST_S,
    ) -> None:
        self.method = method
        self._total = total
        self._integral = Integral(clock)
        self._latest: dict[str, float] = {}
        self._ended = threading.Event()
        self._finalizer = weakref.finalize(self, stop)
        first: SimpleQueue[None] = SimpleQueue()
        state = (lines, parse, self._integral, self._latest, self._ended, first)
        threading.Thread(target=_watch, args=state, name="edgerun-energy", daemon=True).start()
        try:
            first.get(timeout=first_s)
        except Empty:
            self.close()
            raise ReadError(f"{method} told no watts within {first_s:g} s") from None
        if not self._latest:
            raise ReadError(f"{method} ended without telling watts")

    def read(self) -> Reading:
        if self._ended.is_set():
            raise ReadError(f"{self.method} has ended")
        self._integral.add(self._latest)
        domains, at_s = self._integral.joules()
        return Reading(sum(domains.get(name, 0.0) for name in self._total), domains, at_s)

    def close(self) -> None:
        self._finalizer()


def command_source(command: Sequence[str], *, first_s: float = _FIRST_S) -> WatchedSource:
    """An external meter: a command that prints watts, a number a line, until it is ended. ReadError when it cannot be
    started or tells nothing."""
    return _of(command, f"the meter `{command[0]}`", number, ("meter",), first_s)


def powermetrics_source() -> WatchedSource:
    """Apple's own, which asks for root. ReadError where there is none, or it may not be used."""
    command = ["powermetrics", "--samplers", "cpu_power,gpu_power,ane_power", "-i", "200"]
    return _of(command, "powermetrics (CPU, GPU and neural engine)", powermetrics, ("cpu", "gpu", "ane"), _FIRST_S)


def _of(command: Sequence[str], method: str, parse: Parse, total: tuple[str, ...], first_s: float) -> WatchedSource:
    try:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
    except OSError as error:
        raise ReadError(f"{method} cannot be started: {error}") from error
    assert process.stdout is not None  # it was asked for

    def stop() -> None:
        process.terminate()
        process.wait()

    return WatchedSource(method, process.stdout, parse, total=total, stop=stop, first_s=first_s)


def _watch(
    lines: Iterable[str],
    parse: Parse,
    integral: Integral,
    latest: dict[str, float],
    ended: threading.Event,
    first: SimpleQueue[None],
) -> None:
    try:
        for line in lines:
            watts = parse(line[:_MOST_LINE])
            if watts:
                latest.update(watts)
                integral.add(latest)
                first.put(None)
    finally:
        ended.set()
        first.put(None)
