"""What a battery gives: current times voltage of Linux's and Android's power_supply class, the whole device's power.

https://docs.kernel.org/power/power_supply_class.html. Only while it is discharging: on a charger the current is not
what the device takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgerun.errors import NotFoundError, ReadError
from edgerun.profiling.energy.sampled import INTERVAL_S, PowerSampler

POWER_SUPPLY = Path("/sys/class/power_supply")


def battery_source(
    root: Path = POWER_SUPPLY, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.perf_counter
) -> PowerSampler:
    """NotFoundError without a battery, ReadError when it is not discharging or tells no current."""
    found = [path for path in sorted(root.glob("*")) if _text(path / "type") == "Battery"]
    found = [path for path in found if _text(path / "scope") != "Device"]  # those of mice and keyboards
    if not found:
        raise NotFoundError("this machine has no battery")

    def watts() -> dict[str, float]:
        return {path.name: _watts(path) for path in found}

    return PowerSampler("battery, the whole device", watts, interval_s=interval_s, clock=clock)


def on_battery(root: Path = POWER_SUPPLY) -> bool:
    """Whether some battery of the machine is discharging."""
    return any(
        _text(path / "type") == "Battery"
        and _text(path / "scope") != "Device"
        and _text(path / "status") == "Discharging"
        for path in root.glob("*")
    )


def _watts(path: Path) -> float:
    status = _text(path / "status")
    if status != "Discharging":
        raise ReadError(
            f"the battery is not discharging ({status or 'unknown'}): unplug the charger to measure with it"
        )
    power = _number(path / "power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = _number(path / "current_now"), _number(path / "voltage_now")
    if current is None or voltage is None:
        raise ReadError(f"{path} tells neither its power nor its current and voltage")
    return abs(current) * voltage / 1e12  # some drivers count what leaves as negative


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
