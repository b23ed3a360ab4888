"""Computing less than one could: a share of the time, chosen so that a power, a temperature or a battery is kept to.

After every pass of the model the threads rest for a part of the time that the pass took (a duty cycle): they sleep, and
the processor with them. The share is found by measuring: too much power, and it shrinks in proportion.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgerun.profiling.energy import EnergyMeter, Window

_LEAST, _SAVING = 0.05, 0.5  # shares of the time: never less; with a battery to save
_LOOK_S = 0.5  # between two looks at meters
_SLICE_S = 0.05  # of a rest, after which somebody may have cancelled
_MOST_REST_S = 2.0  # in a row
_COOL_DOWN, _WARM_UP = 0.8, 1.05  # of the share, at a look while it is too hot, and when it is not
_MARGIN_CELSIUS = 3.0  # below the limit, from where on the share grows again
_DAMPING = 0.7  # of the correction: power follows a change of the share only slowly


class Throttle:
    """`Decoder.throttle`. limit_w: power to stay within, as `meter` counts it; saves_battery: half of the time while
    `on_battery()`; most_celsius: temperature to stay below, as `celsius()` says (None: it cannot be read)."""

    def __init__(
        self,
        *,
        meter: EnergyMeter | None = None,
        limit_w: float | None = None,
        saves_battery: bool = False,
        on_battery: Callable[[], bool] = lambda: False,
        most_celsius: float | None = None,
        celsius: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._meter, self._limit_w = meter, limit_w
        self._saves_battery, self._on_battery = saves_battery, on_battery
        self._most_celsius, self._celsius = most_celsius, celsius
        self._clock, self._sleep = clock, sleep
        self._by_power = self._by_heat = 1.0
        self._saving = saves_battery and on_battery()
        self._window: Window | None = None if meter is None else meter.begin()
        self._looked = clock()
        self.worked_s = self.rested_s = 0.0
        self.watts: float | None = None  # at the last look
        self._unread = ""  # why the meter said nothing then

    @property
    def duty(self) -> float:
        """The share of the time in which threads compute now."""
        return max(_LEAST, min(self._by_power, self._by_heat, _SAVING if self._saving else 1.0))

    def rest(self, worked_s: float, cancelled: Callable[[], bool]) -> None:
        """After a pass that took so long. Ends early when it is cancelled."""
        self.worked_s += worked_s
        left = min(_MOST_REST_S, worked_s * (1 / self.duty - 1))
        while left > 0 and not cancelled():
            some = min(left, _SLICE_S)
            began = self._clock()
            self._sleep(some)
            self.rested_s += self._clock() - began
            left -= some
        if self._clock() - self._looked >= _LOOK_S:
            self._look()

    def describe(self) -> str:
        """For people: what is kept to, and the speed that is paid for it."""
        total = self.worked_s + self.rested_s
        paid = f"rested {100 * self.rested_s / total:.0f} % of the time" if total else "not worked yet"
        why = []
        if self._limit_w is not None and self._meter is not None:
            now = "" if self.watts is None else f", {self.watts:.1f} W now"
            now = f", which cannot be kept to any more: {self._unread}" if self._unread else now
            why.append(f"limit {self._limit_w:g} W{now} ({self._meter.method})")
        if self._saves_battery:
            why.append("saving the battery" if self._saving else "on a charger, or without a battery: nothing to save")
        if self._most_celsius is not None:
            seen = self._celsius()
            why.append(f"limit {self._most_celsius:g} C, {'unreadable' if seen is None else f'{seen:.0f} C now'}")
        return f"{'; '.join(why)}; {paid}"

    def _look(self) -> None:
        """At meters, to correct the share."""
        self._looked = self._clock()
        self._saving = self._saves_battery and self._on_battery()
        if self._limit_w is not None and self._meter is not None and self._window is not None:
            spent = self._window.end()
            self.watts, self._unread = spent.watts, spent.reason
            self._window = self._meter.begin()
            if self.watts is not None and self.watts > 0:
                wanted = self._by_power * (self._limit_w / self.watts) ** _DAMPING
                self._by_power = max(_LEAST, min(1.0, wanted))
        celsius = None if self._most_celsius is None else self._celsius()
        if celsius is not None and self._most_celsius is not None:
            if celsius > self._most_celsius:
                self._by_heat = max(_LEAST, self._by_heat * _COOL_DOWN)
            elif celsius < self._most_celsius - _MARGIN_CELSIUS:
                self._by_heat = min(1.0, self._by_heat * _WARM_UP)


def hottest_celsius(root: Path = Path("/sys/class/thermal")) -> float | None:
    """Of the thermal zones that are no battery's; None where none can be read."""
    found = []
    for zone in root.glob("thermal_zone*"):
        try:
            kind, millidegrees = (zone / "type").read_text(), int((zone / "temp").read_text())
        except (OSError, ValueError):
            continue
        if "batt" not in kind.lower() and 0 < millidegrees < 150_000:
            found.append(millidegrees / 1000)
    return max(found, default=None)
