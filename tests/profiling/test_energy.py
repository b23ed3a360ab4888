"""Meters on fake sysfs trees, recorded counters and synthetic power: what they count, and what they say else."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgerun.errors import NotFoundError, ReadError, UntrustedError, UsageError
from edgerun.profiling.energy import EnergyMeter, Reading, describe, find_meter
from edgerun.profiling.energy import rapl as rapl_module
from edgerun.profiling.energy.battery import battery_source, on_battery
from edgerun.profiling.energy.estimate import EstimateSource
from edgerun.profiling.energy.ina import ina_source
from edgerun.profiling.energy.nvml import nvml_source
from edgerun.profiling.energy.rapl import RaplSource
from edgerun.profiling.energy.sampled import PowerSampler
from edgerun.profiling.energy.watched import WatchedSource, command_source, number, powermetrics


class Clock:
    """Seconds that only pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def zone(root: Path, place: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    return write(root / place, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj)


def test_rapl_counts_packages_and_memory_and_wraps(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    other = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    meter = EnergyMeter(RaplSource(tmp_path), clock=(clock := Clock()))
    window = meter.begin()
    for spent in (1, 2, 3):  # joules a package; the first one begins again after the first
        write(package, energy_uj=(999_000_000 + spent * 1_000_000) % 1_000_000_000)
        write(other, energy_uj=spent * 1_000_000)
        write(dram, energy_uj=spent * 500_000)
        write(tmp_path / "intel-rapl:0:0", energy_uj=spent * 700_000)
        clock.now += 1
    energy = window.end()
    assert energy.gross_j == pytest.approx(7.5) and energy.watts == pytest.approx(2.5) and energy.net_j is None
    assert energy.domains_j == pytest.approx({"package-0": 3, "package-1": 3, "core": 2.1, "dram": 1.5})
    assert describe(energy, per=3) == "7.50 J, 2.500 J a token (RAPL package + dram)"


def test_rapl_prefers_the_platform(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    psys = zone(tmp_path, "intel-rapl:1", "psys", 0)
    source = RaplSource(tmp_path)
    write(psys, energy_uj=5_000_000)
    assert (source.read().total_j, source.method) == (5, "RAPL platform")


def test_rapl_that_may_not_be_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refused(self: Path, *arguments: str) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments)

    monkeypatch.setattr(rapl_module.Path, "read_text", refused)  # root may read everything
    with pytest.raises(UntrustedError, match="sudo chmod a.r .*energy_uj"):
        RaplSource(tmp_path / "powercap")
    meter = find_meter(root=tmp_path)
    energy = meter.begin().end()
    assert energy.gross_j is None and "sudo chmod" in describe(energy) and describe(energy).startswith("unavailable: ")
    with pytest.raises(UsageError, match="the meter rapl cannot be read"):
        find_meter("rapl", root=tmp_path)


def test_a_counter_that_goes_away_is_no_zero(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter(RaplSource(tmp_path))
    window = meter.begin()
    (package / "energy_uj").unlink()
    energy = window.end()
    assert energy.gross_j is None and "cannot be read" in energy.reason
    assert meter.joules() is None and "cannot be read" in meter.reason


def test_battery_integrates_current_times_voltage_while_it_discharges(tmp_path: Path) -> None:
    write(tmp_path / "AC", type="Mains", online=0)
    write(tmp_path / "hidpp_battery_0", type="Battery", scope="Device", status="Discharging")
    battery = write(
        tmp_path / "BAT0", type="Battery", status="Discharging", current_now=-500_000, voltage_now=12_000_000
    )
    clock = Clock()
    meter = EnergyMeter(battery_source(tmp_path, interval_s=0, clock=clock), clock=clock)
    window = meter.begin()
    clock.now += 10
    assert window.end().gross_j == pytest.approx(60) and on_battery(tmp_path)
    write(battery, current_now=1_500_000)  # the power between two samples changes evenly
    clock.now += 10
    assert window.end().gross_j == pytest.approx(60 + 120)
    write(battery, status="Charging")
    assert "unplug the charger" in window.end().reason and not on_battery(tmp_path)
    with pytest.raises(ReadError, match="not discharging"):
        battery_source(tmp_path)
    with pytest.raises(NotFoundError, match="no battery"):
        battery_source(tmp_path / "AC")
    power = write(tmp_path / "phone" / "battery", type="Battery", status="Discharging", power_now=7_000_000).parent
    assert battery_source(power, interval_s=0, clock=clock).read().total_j == 0


@pytest.mark.parametrize("text", [b"--5", "\u00b2".encode(), b"\xff\xfe", b"", b"5 W"])
def test_a_battery_that_tells_nonsense_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = write(tmp_path / "BAT0", type="Battery", status="Discharging", voltage_now=12_000_000)
    (folder / "current_now").write_bytes(text)
    (folder / "power_now").write_bytes(text)
    with pytest.raises(ReadError, match="neither its power nor its current"):
        battery_source(tmp_path)


def test_ina_rails(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0", name="coretemp", in1_input=1)
    rails = {"in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 2000}
    rails |= {
        "in2_label": "VDD_CPU_GPU_CV",
        "in2_input": 5000,
        "curr2_input": 1000,
        "in7_label": "sum of shunt voltages",
    }
    write(tmp_path / "hwmon1", name="ina3221", **rails)
    clock = Clock()
    source = ina_source(tmp_path, interval_s=0, clock=clock)
    clock.now += 3
    assert (
        source.read() == Reading(30, {"VDD_IN": 30, "VDD_CPU_GPU_CV": 15}, clock.now)
        and source.method == "INA rail VDD_IN"
    )
    write(tmp_path / "only" / "hwmon0", name="ina226", power1_input=2_500_000)
    source = ina_source(tmp_path / "only", interval_s=0, clock=clock)
    clock.now += 2
    assert source.read().total_j == 5
    with pytest.raises(NotFoundError, match="no INA"):
        ina_source(tmp_path / "none")


def test_constant_power_within_one_percent_by_a_thread_that_samples() -> None:
    source = PowerSampler("synthetic", lambda: {"all": 20.0}, interval_s=0.005)
    meter = EnergyMeter(source)
    assert meter.measure_idle(0.05) == pytest.approx(20, rel=0.01)
    window = meter.begin()
    while (energy := window.end()).seconds < 0.15:
        pass
    assert energy.gross_j == pytest.approx(20 * energy.seconds, rel=0.01)
    assert energy.net_j is not None and abs(energy.net_j) < 0.02 * energy.gross_j
    source.close()


def test_powermetrics_as_recorded() -> None:
    lines = ["*** Sampled system activity ***", "CPU Power: 1200 mW", "GPU Power: 300 mW", "ANE Power: 0 mW",
             "Combined Power (CPU + GPU + ANE): 1500 mW", "CPU Power: x mW"]  # fmt: skip
    assert [powermetrics(line) for line in lines[1:5]] == [{"cpu": 1.2}, {"gpu": 0.3}, {"ane": 0.0}, {"combined": 1.5}]
    assert powermetrics(lines[0]) == powermetrics(lines[5]) == {}
    assert number("12.5 W") == {"meter": 12.5} and number("-1") == number("nan W") == number("x") == {}
    clock = Clock()

    def told() -> Iterator[str]:
        yield from lines
        while not ended:
            yield ""

    ended: list[int] = []
    source = WatchedSource("recorded", told(), powermetrics, total=("cpu", "gpu", "ane"), clock=clock)
    while "ane" not in source.read().domains_j:
        pass
    before = source.read().total_j
    clock.now += 10
    assert source.read().total_j - before == pytest.approx(15)
    ended.append(1)


def test_an_external_meter() -> None:
    told = "import time\nwhile True: print(8.0, flush=True); time.sleep(0.01)"
    source = command_source([sys.executable, "-c", told], first_s=20)
    meter = EnergyMeter(source)
    window = meter.begin()
    while (energy := window.end()).seconds < 0.1:
        pass
    source.close()
    assert energy.gross_j == pytest.approx(8 * energy.seconds, rel=0.01)
    with pytest.raises(ReadError, match="without telling watts"):
        command_source([sys.executable, "-c", "print('hello')"], first_s=20)
    with pytest.raises(ReadError, match="cannot be started"):
        command_source(["/nonexistent/meter"])
    with pytest.raises(UsageError, match="cannot be started"):
        find_meter("command:/nonexistent/meter")


class Nvml:
    """A driver with one GPU; `counts`: whether it has a counter."""

    def __init__(self, counts: bool) -> None:
        self.millijoules, self._counts = 1000, counts

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, out: object) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_uint))[0] = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, out: object) -> int:
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object, out: object) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0 if self._counts else 3

    def nvmlDeviceGetPowerUsage(self, device: object, out: object) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_uint))[0] = 250_000
        return 0


def test_nvml_counter_and_power() -> None:
    driver = Nvml(counts=True)
    source = nvml_source(driver)
    driver.millijoules += 4500
    assert source.read() == Reading(4.5, {"gpu 0": 4.5})
    clock = Clock()
    source = nvml_source(Nvml(counts=False), interval_s=0, clock=clock)
    clock.now += 2
    assert source.read().total_j == 500


def test_an_estimate_always_says_so() -> None:
    clock, cpu = Clock(), Clock()
    meter = EnergyMeter(EstimateSource(15, 4, idle_w=1, clock=clock, cpu_clock=cpu), clock=clock)
    window = meter.begin()
    clock.now += 10
    cpu.now += 20  # two of four cores
    energy = window.end()
    assert energy.gross_j == pytest.approx(10 + 14 * 5) and energy.is_estimate
    assert "estimate" in describe(energy) and "estimate" in energy.method and describe(energy).startswith("about ")
    assert "estimate" in str(energy.as_dict())
    assert find_meter("estimate:15").source.is_estimate


def test_nothing_to_read_is_said_and_never_zero(tmp_path: Path) -> None:
    meter = find_meter(root=tmp_path)
    energy = meter.begin().end()
    assert meter.joules() is None and meter.measure_idle(0.0) is None and meter.method == "none"
    assert energy.gross_j is None and energy.net_j is None and energy.seconds > 0
    assert "RAPL" in energy.reason and "battery" in energy.reason
    assert find_meter(root=tmp_path, tdp_w=15).source.is_estimate


@pytest.mark.parametrize("which", ["", "magic", "rapl:1", "estimate:", "estimate:x", "estimate:-1", "command:"])
def test_unknown_meters_are_refused(which: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        find_meter(which, root=tmp_path)
