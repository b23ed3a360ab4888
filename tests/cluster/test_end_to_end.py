"""`edgerun cluster up`, `join` and `run --cluster` as a person uses them: processes in namespaces (or on loopback)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_model import make_tiny_model

from edgerun.cli.main import cli
from edgerun.cluster.home import Home
from edgerun.cluster.members import look_around
from tests.cluster.lab import Device, Lab, lab, line_with, running

WORDS = "the cat and the"
_PORTS = (8731, 8732)
_PLAIN = {"EDGERUN_KERNELS": "reference", "EDGERUN_MEMORY": "auto"}


@dataclass
class House:
    """A desk, whose user runs models, and two devices that take part."""

    here: Lab
    desk: Device
    model: Path
    workers: list[subprocess.Popen[str]]

    def run(self, *arguments: str, tokens: int) -> subprocess.Popen[str]:
        """`edgerun run` there."""
        greedy = ("-n", str(tokens), "--temperature", "0", "--raw")
        command = ("-m", "edgerun", "run", str(self.model), WORDS, *greedy, *arguments)
        return self.desk.start(*command, environment=_PLAIN, errors_apart=True)

    def answer(self, *arguments: str, tokens: int = 60) -> tuple[str, str]:
        """What it answers, and what it says besides."""
        with running(self.run(*arguments, tokens=tokens)) as process:
            text, besides = process.communicate(timeout=180)
        assert process.returncode == 0, besides
        return text, besides

    def jobs(self) -> list[str]:
        """What the other devices do, asked from the desk."""
        with self.here.inside(self.desk):
            home = Home(self.desk.home / "data" / "edgerun" / "cluster", self.desk.home / "none", "desk")
            return [standing.device.job if standing.device else "gone" for standing in look_around(home)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    model = make_tiny_model(folder / "tiny.gguf", chat=False)
    with ExitStack() as stack:
        here = stack.enter_context(lab(folder, 3))
        desk, attic, shed = here.devices
        place = f"{attic.address}:{_PORTS[0]}"
        up = attic.start("-m", "edgerun", "cluster", "up", "--name", "attic", "--listen", place, environment=_PLAIN)
        stack.enter_context(running(up))
        code = re.search(r"join (\d{3}-\d{3})", line_with(up, "on the other device"))
        assert code is not None
        own = ("--name", "shed", "--listen", f"{shed.address}:{_PORTS[1]}")
        join = shed.start(*("-m", "edgerun", "cluster", "join", code[1], "--peer", place, *own), environment=_PLAIN)
        stack.enter_context(running(join))
        line_with(join, "shed listens")
        code = re.search(r"now (\d{3}-\d{3})", line_with(up, "the code is now"))
        assert code is not None
        paired = desk.start(*("-m", "edgerun", "cluster", "join", code[1], "--peer", place, "--only", "--name", "desk"))
        with running(paired):
            line_with(paired, "desk joined attic; known now: attic, shed")
        yield House(here, desk, model, [up, join])


def test_devices_answer_what_one_alone_does(house: House) -> None:
    text, _ = house.answer()
    shared, besides = house.answer("--cluster", "--all-devices")
    assert shared == text and len(text) > 60
    assert "attic is there" in besides and "shed is there" in besides
    assert house.answer("--cluster", "--all-devices", "--allreduce", "star")[0] == text
    assert house.answer("--cluster", "--all-devices", "--wire", "q8", tokens=5)[0]
    (kept,) = (house.desk.home / "cache").rglob("quick-rates-*.json")  # measured beside other tests
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "weights_bytes_per_s": 1e12}))
    alone, why = house.answer("--cluster")  # a token takes less than a message then
    assert alone == text
    assert re.search(r"desk computes alone: .* ms so, .* ms with attic, shed \(--all-devices: ", why)


def test_top_says_what_each_device_does(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in house.desk.environment.items():
        monkeypatch.setenv(key, value)
    top, end = ["cluster", "top", "--count", "1"], time.monotonic() + 40
    with house.here.inside(house.desk):
        idle = json.loads(CliRunner().invoke(cli, [*top, "--json"]).stdout)["devices"]
        found = [(each["name"], each["answers"], each["load"]) for each in idle]
        assert found == [("attic", True, None), ("shed", True, None)]
        with running(house.run("--cluster", "--all-devices", tokens=400)):
            loads: list[dict[str, float]] = []
            while not loads:
                assert time.monotonic() < end
                seen = json.loads(CliRunner().invoke(cli, [*top, "--json"]).stdout)["devices"]
                loads = [each["load"] for each in seen if each["load"]]
            shown = CliRunner().invoke(cli, top, env={"COLUMNS": "160"}).stdout
    whole = [(each["name"], each["is_head"], each["answers"]) for each in seen]
    assert whole == [("desk", True, False), ("attic", False, True), ("shed", False, True)]
    assert len({load["passes"] for load in loads}) == 1 and loads[0]["passes"] > 0  # the same tokens
    assert all(load["compute_s"] > 0 and load["memory_bytes"] > 10 << 20 for load in loads)
    assert min(load["wait_s"] for load in loads) == 0 < loads[0]["wire_s"] == loads[2]["wire_s"]
    assert [load["round_trip_s"] > 0 for load in loads] == [False, True, True]
    assert "desk" in shown and "attic" in shown and "compute" in shown


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGKILL])
def test_a_head_that_is_stopped_or_dies_frees_the_others(house: House, way: signal.Signals) -> None:
    with running(house.run("--cluster", "--all-devices", tokens=4000)) as process:
        assert process.stdout is not None
        assert len(process.stdout.read(20)) == 20
        assert house.jobs() == ["a job", "a job"]
        os.killpg(process.pid, way)
        process.communicate(timeout=30)
        assert process.returncode != 0
    end = time.monotonic() + 5
    while house.jobs() != ["", ""] and time.monotonic() < end:
        time.sleep(0.1)
    assert house.jobs() == ["", ""]


def test_a_worker_that_is_killed_costs_no_token(house: House) -> None:
    text, _ = house.answer(tokens=400)
    with running(house.run("--cluster", "--all-devices", tokens=400)) as process:
        assert process.stdout is not None and process.stderr is not None
        start = process.stdout.read(300)
        os.killpg(house.workers[1].pid, signal.SIGKILL)
        rest = process.stdout.read()
        besides = process.stderr.read()
        assert "divided anew" in besides and re.search(r"of \d{2,3} positions were kept", besides)
        assert process.wait() == 0
    assert start + rest == text
