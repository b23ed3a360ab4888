"""Power rails that INA2xx and INA3221 chips measure, by Linux's hwmon class: Jetsons, and boards with such a sensor.

https://docs.kernel.org/hwmon/ina3221.html: in1_label names a rail, in1_input are its millivolts, curr1_input its
milliamperes; others tell power1_input in microwatts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgerun.errors import NotFoundError, ReadError
from edgerun.profiling.energy.sampled import INTERVAL_S, PowerSampler

HWMON = Path("/sys/class/hwmon")
_WHOLE = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # rails that all others are fed from
_MOST_RAILS = 8


def ina_source(
    root: Path = HWMON, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.perf_counter
) -> PowerSampler:
    """NotFoundError without such a sensor."""
    rails: dict[str, Callable[[], float]] = {}
    for chip in sorted(root.glob("hwmon*")):
        name = _text(chip / "name")
        if not name.startswith("ina"):
            continue
        for index in range(1, _MOST_RAILS + 1):
            label = (
                _text(chip / f"in{index}_label") or _text(chip / f"power{index}_label") or f"{name} {chip.name} {index}"
            )
            if label.startswith("sum"):
                continue
            if (chip / f"power{index}_input").exists():
                rails[label] = _power(chip / f"power{index}_input")
            elif (chip / f"curr{index}_input").exists() and (chip / f"in{index}_input").exists():
                rails[label] = _product(chip / f"curr{index}_input", chip / f"in{index}_input")
    if not rails:
        raise NotFoundError("this machine has no INA power sensor")
    whole = tuple(name for name in _WHOLE if name in rails)[:1]
    method = f"INA rail {whole[0]}" if whole else f"INA rails {', '.join(sorted(rails))}"

    def watts() -> dict[str, float]:
        return {name: read() for name, read in rails.items()}

    return PowerSampler(method, watts, total=whole or None, interval_s=interval_s, clock=clock)


def _power(path: Path) -> Callable[[], float]:
    return lambda: _number(path) / 1e6


def _product(milliamperes: Path, millivolts: Path) -> Callable[[], float]:
    return lambda: _number(milliamperes) * _number(millivolts) / 1e6


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from error
