"""A head that dies or is interrupted while it makes the group anew after a loss: the others give everything back, and
take the next job."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgerun.api.llm import LLM
from edgerun.cluster.at_once import Stop, all_at_once
from tests.cluster.dying_head import PIECE_BYTES
from tests.cluster.lab import line_with
from tests.cluster.lab import running as alive
from tests.cluster.test_spares import OPTIONS, PROMPT, devices, running
from tests.tiny_model import make_tiny_model

_FREE_S = 3.0  # from the head's end to the end of all that was done for it
_END_S = 12.0  # from an interrupt to the end of the head; to wait for shards that are being cut would take over 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", layers=3)


@pytest.fixture(scope="module")
def wanted(model: Path) -> str:
    with LLM(model, threads=1) as llm:
        return llm.complete(PROMPT, **OPTIONS).text


class InterruptedActs(list[Callable[[], None]]):
    """The interrupt comes when the first is at work, and the next is not."""

    def __iter__(self) -> Iterator[Callable[[], None]]:
        yield self[0]
        raise KeyboardInterrupt


def test_an_interrupt_while_threads_are_started_stops_those_that_are() -> None:
    stop, began = Stop(), time.monotonic()

    def works() -> None:
        while time.monotonic() < began + 20:
            stop.check()
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        all_at_once(InterruptedActs([works, works]), stop.set)
    assert time.monotonic() < began + 10


def jobs() -> list[threading.Thread]:
    """Of the devices, which are in this process."""
    return [each for each in threading.enumerate() if each.name == "cluster job"]


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("moment", ["cut", "send", "measure"])
def test_the_others_are_free_and_take_the_next_job(
    moment: str, sign: str, model: Path, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerun.cluster.shards.PIECE_BYTES", PIECE_BYTES)
    with devices(tmp_path, 3) as (desk, servers):
        command = [sys.executable, "-m", "tests.cluster.dying_head", str(tmp_path), str(model), moment, sign]
        place = Path(__file__).parents[2]
        with alive(
            subprocess.Popen(
                command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
        ) as head:
            for _ in range(4):
                line_with(head, "")
            assert len(jobs()) == 3
            servers.pop().close()
            line_with(head, "now")
            began = time.monotonic()
            head.wait(60)
            assert time.monotonic() - began < _END_S and head.returncode in (-signal.SIGKILL, -signal.SIGINT, 1, 130)
        end = time.monotonic() + _FREE_S
        while jobs() and time.monotonic() < end:
            time.sleep(0.02)
        assert not jobs()
        monkeypatch.setattr("edgerun.cluster.remote.PIECE_BYTES", PIECE_BYTES)
        with running(model, desk) as llm:
            assert llm.engine.decoder.size == 3  # type: ignore[attr-defined]
            assert llm.complete(PROMPT, **OPTIONS).text == wanted
    assert not list(tmp_path.rglob("*.edgerun-tmp"))
