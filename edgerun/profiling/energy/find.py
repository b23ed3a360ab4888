"""Which meter there is."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from edgerun.device import physical_cores
from edgerun.errors import EdgerunError, UsageError
from edgerun.profiling.energy.battery import battery_source
from edgerun.profiling.energy.estimate import EstimateSource
from edgerun.profiling.energy.ina import ina_source
from edgerun.profiling.energy.meter import EnergyMeter, Source
from edgerun.profiling.energy.nvml import nvml_source
from edgerun.profiling.energy.rapl import RaplSource
from edgerun.profiling.energy.watched import command_source, powermetrics_source

METERS = ("auto", "rapl", "ina", "battery", "powermetrics", "nvml", "estimate:WATTS", "command:COMMAND")


def find_meter(which: str = "auto", *, root: Path = Path("/sys/class"), tdp_w: float | None = None) -> EnergyMeter:
    """A meter by its name (`METERS`); auto: the first that can be read of those that see the processor (RAPL, INA
    rails, battery, powermetrics), else an estimate where `tdp_w`, the processor's power by its data sheet, is known,
    else one that says why there is none. UsageError for a meter that was asked for by name and cannot be read."""
    if which == "auto":
        return _any(root, tdp_w)
    name, _, value = which.partition(":")
    sources = _sources(root)
    try:
        if name == "estimate":
            return EnergyMeter(EstimateSource(_watts(value), physical_cores()))
        if name == "command" and value:
            return EnergyMeter(command_source(shlex.split(value, posix=os.name == "posix")))
        if name in sources and not value:
            return EnergyMeter(sources[name]())
    except UsageError:
        raise
    except EdgerunError as error:
        raise UsageError(f"the meter {which} cannot be read: {error}") from error
    raise UsageError(f"the energy meter must be one of {', '.join(METERS)}, got {which!r}")


def _sources(root: Path) -> dict[str, Callable[[], Source]]:
    return {
        "rapl": lambda: RaplSource(root / "powercap"),
        "ina": lambda: ina_source(root / "hwmon"),
        "battery": lambda: battery_source(root / "power_supply"),
        "powermetrics": powermetrics_source,
        "nvml": nvml_source,
    }


def _any(root: Path, tdp_w: float | None) -> EnergyMeter:
    reasons = []
    for name, open_source in _sources(root).items():
        if name == "nvml" or (name == "powermetrics" and sys.platform != "darwin"):
            continue  # it sees GPUs, which compute nothing here
        try:
            return EnergyMeter(open_source())
        except EdgerunError as error:
            reasons.append(str(error))
    if tdp_w is not None:
        return EnergyMeter(EstimateSource(tdp_w, physical_cores()))
    return EnergyMeter(None, "; ".join(reasons))


def _watts(text: str) -> float:
    try:
        watts = float(text.removesuffix("W"))
    except ValueError:
        watts = 0.0
    if not 0 < watts < 1e5:
        raise UsageError(f"an estimate needs the processor's power by its data sheet, as in estimate:15, got {text!r}")
    return watts
