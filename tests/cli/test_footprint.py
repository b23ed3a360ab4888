"""What edgerun leaves on a machine and whom it calls: its own directories, and nobody but for `pull` and friends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models.instances import INSTANCES, write
from tiny_model import make_tiny_model

from tests.convert.hf_checkpoint import write_checkpoint

# not imported in this process: that would leave what these tests look for
needs_onnxruntime = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs onnxruntime")

# run before everything else in a process: writes down every attempt to reach another host
_WATCH = """
import os, sys

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {args[1:]}\\n")

sys.addaudithook(watch)
"""
_COMMANDS = """
import json, sys
from edgerun.cli.main import cli
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as left:
        codes.append(left.code or 0)
print()
print(json.dumps(codes))
"""


def run_all(folder: Path, commands: list[list[str]]) -> tuple[list[int], str]:
    """Exit codes of commands in one process, and whom it called."""
    for name in ("site", "tmp", "here"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(_WATCH)
    watched = folder / "watched"
    watched.write_text("")
    root = Path(__file__).parents[2]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("XDG_DATA")},
        "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{root}",
        "TMPDIR": str(folder / "tmp"),
        "WATCHED": str(watched),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        cwd=folder / "here",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), watched.read_text()


def files_in(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_symlink() or not each.is_dir()}


@needs_onnxruntime
def test_nothing_is_left_elsewhere_and_nobody_is_called(user_home: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    chat = str(make_tiny_model(tmp_path / "models" / "chat.gguf"))
    model = str(write(INSTANCES["llama-Q4_0"], tmp_path / "models" / "model.gguf"))
    mixture = str(write(INSTANCES["olmoe-Q8_0"], tmp_path / "models" / "mixture.gguf"))
    write_checkpoint(tmp_path / "models" / "checkpoint", "llama")
    out = tmp_path / "models" / "out"
    kernels = ["--kernels", "reference"]
    commands = [
        ["list"],
        ["list", "--aliases"],
        ["show", chat],
        ["show", chat, "--metadata"],
        ["tokenize", chat, "the sea"],
        ["run", chat, "hello", "-n", "3", *kernels],
        ["run", chat, "hello", "-n", "3", *kernels, "--prefill", "ort-cpu:fp32"],
        ["bench", model, "-p", "8", "-n", "3", "-r", "1", *kernels],
        ["bench", mixture, "-p", "4", "-n", "3", "-r", "1", *kernels, "--record-routing", f"{out}.json"],
        ["pack", mixture, *kernels],
        ["pack", mixture, "--verify", *kernels],
        ["doctor", "--providers"],
        ["calibrate", model, "--backend", "ort-cpu:w8a8", *kernels],
        ["convert", str(tmp_path / "models" / "checkpoint"), f"{out}.gguf"],
        ["quantize", f"{out}.gguf", f"{out}-Q8_0.gguf", "--type", "Q8_0"],
    ]
    codes, called = run_all(tmp_path, commands)
    assert dict(zip(map(" ".join, commands), codes, strict=True)) == {" ".join(each): 0 for each in commands}
    assert called == ""
    ours = (Path("cache") / "edgerun", Path("data") / "edgerun", Path(".local/share/edgerun"))
    left = {name for name in files_in(user_home) if not any(Path(name).is_relative_to(each) for each in ours)}
    assert not left
    assert not files_in(tmp_path / "tmp") and not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "here").iterdir())
    made = {"mixture.gguf.edgepack", "out.json", "out.gguf", "out-Q8_0.gguf"}
    there = {"chat.gguf", "model.gguf", "mixture.gguf"}
    assert {each.name for each in (tmp_path / "models").iterdir() if each.is_file()} == there | made


def test_who_calls_is_seen(user_home: Path, tmp_path: Path) -> None:
    """The watch of the test above does see `pull`, and what asks a hub for a model that is not here."""
    codes, called = run_all(tmp_path, [["pull", "org/model:Q4_0"], ["plan", "org/model"], ["run", "org/model", "hi"]])
    assert codes == [5, 5, 5]
    assert called.count("socket.connect") >= 3 and "127.0.0.1" in called


@needs_onnxruntime
def test_telemetry_is_off_for_the_import_alone(user_home: Path, tmp_path: Path) -> None:
    code = (
        "import os; from edgerun.prefill.providers import runtime\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ; runtime()\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
        "runtime().get_ep_devices(); runtime().SessionOptions()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not [name for name in files_in(user_home) if "icrosoft" in name or "onnxruntime" in name]
