"""Standard streams that are closed, full or gone; no home; signals. As a shell would have it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Run

EDGERUN = f"{shlex.quote(sys.executable)} -m edgerun"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env.pop("PYTHONUNBUFFERED", None)  # which nobody has: what cannot be written waits until the end
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize("command", ["--version", "run MODEL hello -n 2"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_closed_and_full_streams(command: str, closed: str, chat_model: Path) -> None:
    """A result that cannot be written is an error; a note that cannot is none."""
    done = shell(f"{EDGERUN} {command.replace('MODEL', shlex.quote(str(chat_model)))} {closed}")
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if ">&- " in f" {closed} ".replace("2>&-", "") or closed == ">/dev/full" else 0)
    if closed in (">&-", ">/dev/full"):
        assert done.stderr.startswith("edgerun: ")


def test_wrong_usage_with_nowhere_to_say_it() -> None:
    for closed in ("2>&-", "2>/dev/full"):
        assert shell(f"{EDGERUN} run --nonsense {closed}").returncode == 2


def test_a_reader_that_leaves(chat_model: Path) -> None:
    done = shell(f"{EDGERUN} run {chat_model} hello -n 400 | head -c 3; echo ${{PIPESTATUS[0]}}")
    assert "Traceback" not in done.stderr and done.stdout[3:] in ("0\n", "1\n")


HOMELESS = """
import pwd, sys
def unknown(*arguments): raise KeyError("uid")
pwd.getpwuid = pwd.getpwnam = unknown
sys.argv[0] = "edgerun"
from edgerun.cli.main import main
main()
"""


@pytest.mark.parametrize("arguments", [("list",), ("run", "MODEL", "hello", "-n", "2"), ("run", "~/x", "hello")])
def test_no_home_and_no_entry_among_the_users(arguments: tuple[str, ...], chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *(str(chat_model) if a == "MODEL" else a for a in arguments)],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "EDGERUN_KERNELS": "reference"},
        cwd=tmp_path / "work",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == (3 if "~/x" in arguments else 0)
    assert list((tmp_path / "work").iterdir()) == []  # no folder that is called ~


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_a_reply_in_order(number: signal.Signals, chat_model: Path) -> None:
    command = [sys.executable, "-m", "edgerun", "run", str(chat_model), "hello", "-c", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert b"Traceback" not in said
    assert process.returncode == 128 + number


def test_a_signal_that_is_ignored_stays_so(chat_model: Path) -> None:
    line = (
        f"trap '' HUP; {EDGERUN} run {chat_model} hello -n 2000 -c 100000 & sleep 1.5; kill -HUP $!; wait $!; echo $?"
    )
    done = shell(line)
    assert done.stdout.endswith("\n0\n")


@pytest.mark.parametrize(
    "arguments",
    [("-t", "100000"), ("-t", "0"), ("-t", "x"), ("--temperature", "9" * 400), ("--seed", "9" * 400), ("-c", "-1"),
     ("--memory", "1e400"), ("--memory", "9" * 400 + "G"), ("--prefill", ""), ("--top-k", "1.5"), ("-n", "nan")],
    ids=lambda arguments: " ".join(arguments)[:20],
)  # fmt: skip
def test_options_out_of_bounds_are_usage(run: Run, arguments: tuple[str, ...], chat_model: Path) -> None:
    done = run("run", chat_model, "hello", *arguments)
    assert done.exit_code == 2 and len(done.stderr) < 1000
    assert isinstance(done.exception, SystemExit)


NAMES = ["~nouser/x", "x" * 300, "x" * 5000, "a/" * 3000, "", "\0", "\udcff", "\ud800", "x/" + "y" * 300]


@pytest.mark.parametrize("command", ["run", "show", "plan", "pull", "rm", "tokenize", "pack", "bench", "calibrate"])
def test_names_that_name_nothing(run: Run, command: str) -> None:
    for name in NAMES:
        done = run(command, name, *(["hello"] if command in ("run", "tokenize") else []))
        assert isinstance(done.exception, SystemExit) and done.exit_code in (1, 2, 3, 5), ascii(name)


IN_AN_EVENT_LOOP = """
async def wait():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), NUMBER)
    await asyncio.sleep(20)
asyncio.run(wait())
"""
IN_A_FINALIZER = """
class Thing:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        for _ in range(1000):
            pass
Thing()
time.sleep(20)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", [IN_AN_EVENT_LOOP, IN_A_FINALIZER], ids=["event loop", "finalizer"])
def test_a_signal_ends_the_program_wherever_it_arrives(where: str, number: signal.Signals) -> None:
    """The prompt is drawn in callbacks of an event loop, and objects are cleared up at any time: both keep exceptions
    to themselves, and a signal that arrived just there was lost, and the next one ignored."""
    program = f"""
import asyncio, os, signal, sys, time
import click
from edgerun.cli import main
NUMBER = {int(number)}
signal.signal(signal.SIGINT, signal.default_int_handler)
def command():
{"".join(f"    {line}{chr(10)}" for line in where.splitlines())}
main.cli.get_command = lambda ctx, name: click.Command("here", callback=command)
sys.argv = ["edgerun", "here"]
main.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    said = "edgerun: interrupted" if number == signal.SIGINT else "edgerun: ended by SIGTERM"
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (128 + number, [said])
