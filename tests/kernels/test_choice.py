"""Which instruction set "auto" is: the order, unless this machine was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerun.errors import UsageError
from edgerun.kernels import choice
from edgerun.kernels.choice import candidates, choose, fastest, read_speeds, speeds_path, write_speeds
from edgerun.kernels.isa import ISAS, runs_here


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return speeds_path()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The best set of this machine and plain LLVM, which all have, as if both were candidates."""
    monkeypatch.setattr(choice, "candidates", lambda: [candidates()[0], ISAS["portable"]])
    first = candidates()[0].name
    if first == "portable":
        pytest.skip("this processor runs one set only")
    return first, "portable"


def test_unmeasured_the_order_decides() -> None:
    assert read_speeds() is None
    assert choose("auto") is next(isa for isa in ISAS.values() if runs_here(isa))
    assert all(runs_here(isa) for isa in candidates())
    assert "portable" not in [isa.name for isa in candidates()[1:]]


def test_the_measured_fastest_is_taken(two: tuple[str, str]) -> None:
    first, second = two
    write_speeds({first: 1.0, second: 1.5})
    assert choose("auto").name == second
    assert choose(first).name == first, "who names a set gets it"


def test_a_lead_within_noise_changes_nothing(two: tuple[str, str]) -> None:
    first, second = two
    write_speeds({first: 1.0, second: 1.02})
    assert choose("auto").name == first
    assert fastest({second: 5.0}) == second


def test_another_machine_goes_by_the_order(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    write_speeds({first: 1.0, second: 1.5})
    monkeypatch.setattr(choice, "cpu_name", lambda: "another processor")
    assert read_speeds() is None and choose("auto").name == first


@pytest.mark.parametrize(
    "speeds",
    [{}, [], {"sse9": 1.0}, {"portable": 0}, {"portable": float("nan")}, {"portable": "fast"}, {"portable": 10**400}],
    ids=str,
)
def test_nonsense_is_not_believed(cache: Path, speeds: object) -> None:
    write_speeds({"portable": 1.0})
    said = json.loads(cache.read_text())
    cache.write_text(json.dumps(said | {"speeds": speeds}))
    assert read_speeds() is None
    cache.write_text("[" * 100_000)
    assert read_speeds() is None


def test_what_others_can_write_is_not_believed(cache: Path, two: tuple[str, str]) -> None:
    first, second = two
    write_speeds({first: 1.0, second: 1.5})
    cache.chmod(0o666)
    assert read_speeds() is None and choose("auto").name == first


def test_a_named_set_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.kernels.isa.cpu_features", frozenset)
    with pytest.raises(UsageError, match="cannot run the avx2"):
        choose("avx2")
