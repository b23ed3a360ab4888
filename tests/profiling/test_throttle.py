"""Power, heat and batteries are kept to by resting: against a machine that is made up, whose power follows its work."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_model import make_tiny_model

from edgerun import LLM
from edgerun.cli.main import cli
from edgerun.errors import ReadError, UsageError
from edgerun.events import never
from edgerun.profiling.energy import EnergyMeter, Reading
from edgerun.profiling.throttle import Throttle, hottest_celsius


class Machine:
    """Takes 2 W at rest and 20 at work, and warms up by what it takes."""

    method = "made up"
    is_estimate = False

    def __init__(self) -> None:
        self.now = self.joules = 0.0
        self.celsius = 40.0

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float, watts: float) -> None:
        self.now += seconds
        self.joules += seconds * watts
        self.celsius += seconds * (watts * 3 + 40 - self.celsius) / 5  # 100 C if it works for good

    def sleep(self, seconds: float) -> None:
        self.pass_time(seconds, 2)

    def read(self) -> Reading:
        return Reading(self.joules)

    def close(self) -> None:
        """Nothing is open."""


def work(machine: Machine, throttle: Throttle, seconds: float) -> tuple[float, float]:
    """Passes of 30 ms for so long; returns mean power and work done a second, of the last half."""
    middle = None
    end = machine.now + seconds
    while machine.now < end:
        machine.pass_time(0.03, 20)
        throttle.rest(0.03, never)
        if middle is None and machine.now > end - seconds / 2:
            middle = machine.now, machine.joules, throttle.worked_s
    assert middle is not None
    took = machine.now - middle[0]
    return (machine.joules - middle[1]) / took, (throttle.worked_s - middle[2]) / took


@pytest.mark.parametrize("limit", [5.0, 11.0, 18.0, 40.0])
def test_a_power_is_held(limit: float) -> None:
    machine = Machine()
    meter = EnergyMeter(machine, clock=machine.clock)
    throttle = Throttle(meter=meter, limit_w=limit, clock=machine.clock, sleep=machine.sleep)
    watts, done = work(machine, throttle, 60)
    assert watts == pytest.approx(min(limit, 20), rel=0.05)
    assert done == pytest.approx(min(1, (limit - 2) / 18), abs=0.05), "no more is given up than it takes"
    assert f"limit {limit:g} W" in throttle.describe() and "made up" in throttle.describe()
    assert ("rested 0 %" in throttle.describe()) == (limit == 40)


def test_a_meter_that_goes_away_is_told() -> None:
    """The share stays as it was, and nobody is told that a limit is kept to."""
    machine = Machine()
    throttle = Throttle(
        meter=EnergyMeter(machine, clock=machine.clock), limit_w=5, clock=machine.clock, sleep=machine.sleep
    )
    work(machine, throttle, 20)
    duty = throttle.duty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "read", lambda: (_ for _ in ()).throw(ReadError("the sensor is gone")))
        work(machine, throttle, 3)
        assert throttle.duty == duty
        assert "cannot be kept to any more: the sensor is gone" in throttle.describe()
    work(machine, throttle, 3)
    assert "W now" in throttle.describe(), "it is back"


def test_it_backs_off_when_hot_and_recovers() -> None:
    machine = Machine()
    throttle = Throttle(most_celsius=70, celsius=lambda: machine.celsius, clock=machine.clock, sleep=machine.sleep)
    work(machine, throttle, 120)
    assert machine.celsius == pytest.approx(70, abs=6) and throttle.duty < 0.8
    machine.celsius = 20.0
    low = throttle.duty
    work(machine, throttle, 3)
    assert throttle.duty > low and "limit 70 C" in throttle.describe()


def test_a_battery_is_saved_while_it_discharges() -> None:
    machine, plugged = Machine(), [False]
    throttle = Throttle(saves_battery=True, on_battery=lambda: not plugged[0], clock=machine.clock, sleep=machine.sleep)
    assert work(machine, throttle, 10)[1] == pytest.approx(0.5, abs=0.05) and "saving" in throttle.describe()
    plugged[0] = True
    assert work(machine, throttle, 10)[1] == pytest.approx(1, abs=0.05) and "charger" in throttle.describe()


def test_who_cancels_does_not_wait() -> None:
    machine = Machine()
    throttle = Throttle(saves_battery=True, on_battery=lambda: True, clock=machine.clock, sleep=machine.sleep)
    throttle.rest(100.0, lambda: machine.now > 0.1)
    assert machine.now < 0.25
    before = machine.now
    throttle.rest(100.0, never)
    assert machine.now - before <= 2.1, "nobody sleeps for minutes after one long pass"


def test_temperatures(tmp_path: Path) -> None:
    for number, (kind, value) in enumerate(
        [("x86_pkg_temp", "61000"), ("battery", "90000"), ("soc", "x"), ("cpu", "55000")]
    ):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(kind + "\n")
        (zone / "temp").write_text(value + "\n")
    assert hottest_celsius(tmp_path) == 61 and hottest_celsius(tmp_path / "none") is None


def test_a_model_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(tmp_path / "tiny.gguf")
    with LLM(model, power_limit=0.5, power_meter="estimate:100") as llm, LLM(model) as free:
        throttle = llm.engine.decoder.throttle
        assert isinstance(throttle, Throttle) and free.engine.decoder.throttle is None
        monkeypatch.setattr(throttle, "_by_power", 0.3)
        assert (
            llm.complete("abc", max_tokens=20, temperature=0).text
            == free.complete("abc", max_tokens=20, temperature=0).text
        )
        assert throttle.rested_s > throttle.worked_s and "estimate" in throttle.describe()
    said = CliRunner().invoke(cli, ["run", str(model), "abc", "-n", "5", "--battery-saver", "--stats"])
    assert said.exit_code == 0 and "of the time" in said.stderr
    monkeypatch.setattr("edgerun.profiling.throttle.hottest_celsius", lambda: None)
    monkeypatch.setattr("edgerun.profiling.energy.find_meter", lambda which: EnergyMeter(None, "no meter here"))
    for options in ({"power_limit": 5.0}, {"max_celsius": 60.0}):
        with pytest.raises(UsageError, match="cannot be kept to"):
            LLM(model, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="power_limit"):
        LLM(model, power_limit=-1.0)
    with pytest.raises(UsageError, match="power_limit, which was not given"):
        LLM(model, power_meter="estimate:15")
