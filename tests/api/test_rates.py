"""When this machine's rates are measured, and which are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgerun import paths
from edgerun.api import machine_rates
from edgerun.events import Notice
from edgerun.options import PLAN_NAMES, load_options
from edgerun.planning.missing_reads import MissingReads
from edgerun.planning.rates import ProductRates, Rates
from edgerun.profiling.noise import Noise
from tests.planning.test_memory import OLMOE


def test_what_was_disturbed_is_said_and_measured_again_later(user_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates and what others took are made up: what counts is when they are measured, and which are kept."""
    rates = [(1e9, 0.8), (2e9, 0.7), (5e9, 0.0)]  # what a measurement finds, and the others' share meanwhile
    measured: list[float] = []

    def completed(known: Rates | None, *_: object) -> Rates:
        if known is not None:
            return known
        measured.append(rates[len(measured)][0])
        return Rates({"Q4_0": ProductRates(measured[-1], 1e11)}, 1e9, 1 << 20)

    class Meter:
        def end(self, _: object) -> Noise:
            return Noise(rates[len(measured) - 1][1], None, None, 2)

    monkeypatch.setattr(machine_rates, "_completed", completed)
    monkeypatch.setattr("edgerun.profiling.noise.NoiseMeter", Meter)
    paths.cache_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in paths.cache_dir().glob("rates-*.json"):  # of this machine
        path.unlink()
    events: list[Notice] = []

    def plan() -> float:
        events.clear()
        options = load_options({"events": events.append}, PLAN_NAMES)
        found = machine_rates.machine_rates(MissingReads(Path("none"), 1 << 20, 3), False, OLMOE[0], options, False)
        return found.products["Q4_0"].decode_bytes_per_s

    def some_minutes_later() -> None:
        (path,) = paths.cache_dir().glob("rates-*.json")
        os.utime(path, (path.stat().st_mtime - 900,) * 2)

    assert plan() == 1e9 and "other programs took 80 %" in events[0].text
    assert plan() == 1e9 and "80 %" in events[0].text and len(measured) == 1, "at once nobody would have ended"
    some_minutes_later()
    assert plan() == 2e9 and "70 %" in events[0].text, "still disturbed, but better"
    some_minutes_later()
    assert plan() == 5e9 and not events
    some_minutes_later()
    assert plan() == 5e9 and len(measured) == 3, "kept for good"
