"""Windows over a source of joules: gross, and net of what the machine takes when it idles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edgerun.errors import EdgerunError


@dataclass(frozen=True)
class Reading:
    """Joules since a source was opened: together, and of each domain. Domains may be parts of each other. at_s: when
    that was, by the meter's clock, where the source knows it better than who asked."""

    total_j: float
    domains_j: Mapping[str, float] = field(default_factory=dict)
    at_s: float | None = None


class Source(Protocol):
    """Something that counts joules. `method`: how, for people; `is_estimate`: whether nothing is read at all."""

    method: str
    is_estimate: bool

    def read(self) -> Reading:
        """Since it was opened; never less than before. EdgerunError when it cannot be read any more."""
        ...

    def close(self) -> None:
        """Stop what it started."""
        ...


@dataclass(frozen=True)
class Energy:
    """What a window took. gross_j: all; net_j: without what idling would have taken, None where that was not measured.
    Both are None where nothing counts, and `reason` says why."""

    gross_j: float | None
    net_j: float | None
    seconds: float
    method: str
    is_estimate: bool = False
    domains_j: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def watts(self) -> float | None:
        """Mean power, gross."""
        return None if self.gross_j is None or self.seconds <= 0 else self.gross_j / self.seconds

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**vars(self), "domains_j": dict(self.domains_j), "watts": self.watts}


class EnergyMeter:
    """Joules of one source. `source` None: there is none to read, for a `reason`. Windows may overlap.

    idle_w: what the machine takes when it idles, if that is known already.
    """

    def __init__(
        self,
        source: Source | None,
        reason: str = "",
        *,
        idle_w: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.source = source
        self.reason = reason
        self.idle_w = idle_w
        self.clock = clock
        self._lap_j = 0.0 if source is None else source.read().total_j

    @property
    def method(self) -> str:
        """How joules are counted, for people."""
        return "none" if self.source is None else self.source.method

    def measure_idle(self, seconds: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> float | None:
        """Watts while this process sleeps, kept as the baseline of later windows; None where nothing counts. What
        others do meanwhile counts as idling."""
        window = self.begin()
        sleep(seconds)
        self.idle_w = window.end().watts
        return self.idle_w

    def begin(self) -> Window:
        """A window from now on."""
        return Window(self)

    def joules(self) -> float | None:
        """Since the last call, or since the meter was made; None where nothing counts."""
        if self.source is None:
            return None
        try:
            now = self.source.read().total_j
        except EdgerunError as error:
            self.source, self.reason = None, str(error)
            return None
        spent, self._lap_j = now - self._lap_j, now
        return spent

    def close(self) -> None:
        """Stop what the source started."""
        if self.source is not None:
            self.source.close()


class Window:
    """A stretch of time of a meter; see `EnergyMeter.begin`."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._reason = meter.reason
        self._first, self._began = self._read()

    def end(self) -> Energy:
        """What was spent since the window began."""
        meter = self._meter
        last, ended = self._read()
        seconds = ended - self._began
        source = meter.source
        if self._first is None or last is None or source is None:
            return Energy(None, None, seconds, "unavailable", reason=self._reason or meter.reason)
        gross = last.total_j - self._first.total_j
        net = None if meter.idle_w is None else gross - meter.idle_w * seconds
        domains = {name: joules - self._first.domains_j.get(name, 0.0) for name, joules in last.domains_j.items()}
        return Energy(gross, net, seconds, source.method, source.is_estimate, domains)

    def _read(self) -> tuple[Reading | None, float]:
        """What the source says, and when."""
        source = self._meter.source
        if source is not None:
            try:
                reading = source.read()
                return reading, self._meter.clock() if reading.at_s is None else reading.at_s
            except EdgerunError as error:
                self._reason = str(error)
        return None, self._meter.clock()


def describe(energy: Energy, *, per: int = 0, unit: str = "token") -> str:
    """For people, with the method: "12.30 J (RAPL package)", "about 12.30 J (estimate: ...)", "unavailable: ...".
    `per`: also divided by so many."""
    if energy.gross_j is None:
        return f"unavailable: {energy.reason}"
    text = f"{energy.gross_j:.2f} J"
    if energy.net_j is not None:
        text += f" gross, {energy.net_j:.2f} J net"
    if per:
        text += f", {energy.gross_j / per:.3f} J a {unit}"
    how = energy.method if not energy.is_estimate or "estimate" in energy.method else f"estimate: {energy.method}"
    return f"{'about ' if energy.is_estimate else ''}{text} ({how})"
