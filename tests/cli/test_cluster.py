"""`edgerun cluster`: the commands, against a device in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import Run
from edgerun.cluster.home import Home
from edgerun.cluster.server import Server
from tests.cluster.homes import home_of, serving
from tests.cluster.process import add_up


@pytest.fixture
def its_home(tmp_path: Path) -> Home:
    """Of the device that shows a code."""
    return home_of(tmp_path / "elsewhere", "attic")


@pytest.fixture
def attic(its_home: Home) -> Iterator[Server]:
    """The device."""
    server = serving(its_home, add_up)
    server.code.open()
    yield server
    server.close()


def test_a_device_joins_looks_around_and_leaves(run: Run, attic: Server, user_home: Path) -> None:
    alone = json.loads(run("cluster", "status", "--json").stdout)
    assert alone["devices"] == [] and alone["shard_bytes"] == 0
    joined = run("cluster", "join", attic.code.digits, "--peer", attic.address, "--only", "--name", "unused")
    assert joined.exit_code == 0, joined.stderr
    assert f"{alone['name']} joined attic; known now: attic" in joined.stderr and joined.stdout == ""
    status = json.loads(run("cluster", "status", "--json").stdout)
    assert status["fingerprint"] == alone["fingerprint"]  # a name is given once, with the key
    assert status["devices"][0]["name"] == "attic" and status["devices"][0]["address"] == attic.address
    assert "attic" in run("cluster", "status").stdout
    (device,) = json.loads(run("cluster", "devices", "--json").stdout)["devices"]
    assert device["answers"] and device["cores"] == 2 and device["does"] == "" and device["round_trip_s"] > 0
    assert "idle" in run("cluster", "devices").stdout
    left = json.loads(run("cluster", "leave", "--json").stdout)
    assert left == {"name": alone["name"], "untold": [], "refused_by": []}
    after = json.loads(run("cluster", "status", "--json").stdout)
    assert after["devices"] == [] and after["fingerprint"] != alone["fingerprint"]
    key = next(user_home.rglob("identity.pem"))
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_device_is_put_out(run: Run, attic: Server) -> None:
    run("cluster", "join", attic.code.digits, "--peer", attic.address, "--only")
    attic.close()
    devices = run("cluster", "devices")
    assert "does not answer" in devices.stdout
    gone = run("cluster", "forget", "attic")
    assert "attic is out" in gone.stderr and gone.exit_code == 0
    assert "no other device" in run("cluster", "status").stdout
    assert run("cluster", "forget", "attic").exit_code == 3
    assert json.loads(run("cluster", "devices", "--json").stdout) == {"devices": []}


@pytest.mark.parametrize("has_others", [False, True])
def test_who_was_put_out_is_told_so(run: Run, attic: Server, its_home: Home, tmp_path: Path, has_others: bool) -> None:
    """It was said that the others did not answer."""
    name = json.loads(run("cluster", "status", "--json").stdout)["name"]
    run("cluster", "join", attic.code.digits, "--peer", attic.address, "--only")
    if has_others:
        its_home.admit(home_of(tmp_path, "shed").me())
    its_home.put_out(name)
    assert "has put this device out" in run("cluster", "devices").stdout
    (device,) = json.loads(run("cluster", "devices", "--json").stdout)["devices"]
    assert not device["answers"] and "put out" in device["why_not"]
    left = run("cluster", "leave")
    assert "it was put out there before: attic" in left.stderr and "do not answer" not in left.stderr


def test_what_goes_wrong_is_said(run: Run, attic: Server) -> None:
    wrong = "123456" if attic.code.digits != "123456" else "654321"
    for arguments, code, words in [
        (["join", "12", "--peer", attic.address], 2, "six digits"),
        (["join", "123456", "--peer", "nowhere:x"], 2, "not an address"),
        (["join", "123456", "--peer", "127.0.0.1:9", "--only"], 5, "cannot be reached"),
        (["join", wrong, "--peer", attic.address, "--only"], 5, "code is wrong"),
        (["join", "123456", "--name", "a b"], 2, "device's name"),
        (["forget", "nobody"], 3, "no device is called"),
        (["up", "--listen", "[::1"], 2, "not an address"),
        (["sideways"], 2, "No such command"),
    ]:
        result = run("cluster", *arguments)
        assert (result.exit_code, result.stdout) == (code, ""), (arguments, result.stderr)
        assert words in result.stderr


def test_without_its_packages_a_cluster_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.cluster.find_spec", lambda name: None if name == "spake2" else name)
    result = run("cluster", "status")
    assert result.exit_code == 1 and "pip install 'edgerun[cluster]'" in result.stderr and "spake2" in result.stderr
