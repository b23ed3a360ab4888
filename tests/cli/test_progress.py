from __future__ import annotations

import sys
import time

import pytest

from edgerun.cli import progress
from edgerun.cli.progress import ProgressBars
from edgerun.events import Progress, TokenGenerated


def test_off_a_terminal_a_slow_task_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    with ProgressBars() as bars:
        bars(Progress("load", 1 << 20, 1 << 30, "bytes"))
        bars(Progress("load", 2 << 20, 1 << 30, "bytes"))
        bars(TokenGenerated(1, 0.1))
        bars(Progress("load", 1 << 30, 1 << 30, "bytes"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["load: 1 MiB of 1 GiB", "load: done"]


def test_a_quick_task_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars() as bars:
        for done in range(3):
            bars(Progress("load", done, 2, "tensors"))
        bars.waiting("reading")
        bars.arrived()
    assert capsys.readouterr().err == ""


def test_kernels_are_one_line_off_a_terminal_when_they_are_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.0)
    with ProgressBars() as bars:
        for done in range(20):
            bars(Progress("compile kernels", done, 20, "kernels"))
        assert capsys.readouterr().err == ""
        bars(Progress("compile kernels", 20, 20, "kernels"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compile kernels: 20 in ")


def test_kernels_show_at_once_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBars() as bars:
        bars(Progress("compile", 0, 2, "kernels"))
        assert bars._bars is not None


def test_on_a_terminal_bars_come_and_go(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "_PATIENCE_S", 0.01)
    with ProgressBars() as bars:
        bars(Progress("load [x]", 0, 2, "kernels"))
        bars.waiting("reading")
        time.sleep(0.3)
        bars.arrived()
        bars(Progress("load [x]", 2, 2, "kernels"))
        assert bars._bars is None
        bars.waiting("again")
    time.sleep(0.05)
    err = capsys.readouterr().err
    assert "load [x]" in err and "reading" in err and "again" not in err
