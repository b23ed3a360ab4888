"""The frame: help, lazy imports, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.conftest import Program, Run
from edgerun.cli.main import COMMANDS, cli
from edgerun.errors import (
    Cancelled,
    ContextLengthError,
    DoesNotFitError,
    EdgerunError,
    FormatError,
    NetworkError,
    NotFoundError,
    UsageError,
)

OPTIONS = {
    "run": "--system --raw --max-tokens --temperature --top-k --top-p --min-p --repeat-penalty --seed --stop "
    "--context --kv EDGERUN_KV --threads --kernels --stats --json EDGERUN_KERNELS "
    "--memory EDGERUN_MEMORY --no-prefetch --record-routing --overwrite --prefill --cluster --allreduce --wire "
    "--same-tokens",
    "pull": "--json org/repo:quant",
    "list": "--json --aliases",
    "show": "--json --template --metadata",
    "rm": "--json",
    "pack": "--kernels --verify --json EDGERUN_KERNELS",
    "plan": "--memory --context --kv --routing --measure --kernels --json",
    "calibrate": "--objective --most-error --backend --memory --kernels --threads --json "
    "EDGERUN_KERNELS EDGERUN_MEMORY",
    "bench": "--memory --no-prefetch --record-routing --overwrite --prompt --decode --repetitions --ids --logits "
    "--threads --kernels --json",
    "cluster": "up join status devices forget leave",
    "profile": "--device --prompt --decode --repetitions --output --trace --energy --context --kernels --threads",
    "doctor": "--json --kernels --threads --providers",
    "convert": "--tokenizer --quant --overwrite --json",
    "quantize": "--type --overwrite --json",
    "tokenize": "--json",
}
HEAVY = {
    "numpy",
    "numba",
    "llvmlite",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "rich",
    "prompt_toolkit",
    "yaml",
    "onnx",
    "onnxruntime",
    "msgspec",
    "zeroconf",
    "cryptography",
}


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in result.stdout and line in result.stdout
    assert "5 network" in result.stdout


@pytest.mark.parametrize("name", OPTIONS)
def test_help_of_a_command_names_its_options(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    for option in OPTIONS[name].split():
        assert option in result.stdout, option


def test_every_command_is_tested_here_and_says_what_the_list_says() -> None:
    assert set(OPTIONS) == set(COMMANDS) - {"chat"}
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and (command.short_help == line or name == "chat"), name


def test_commands_load_light_modules_only() -> None:
    script = (
        "import sys, click; from edgerun.cli.main import COMMANDS, cli\n"
        "for name in COMMANDS: cli.get_command(click.Context(cli), name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert HEAVY & set(out.split()) == set()


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith("edgerun, version ")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--top-p", "2"], ["pull"], ["list", "--no-such-option"]])
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == "" and "Error" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgerunError("wrong"), 1),
        (FormatError("wrong"), 1),
        (UsageError("wrong"), 2),
        (NotFoundError("wrong"), 3),
        (DoesNotFitError("wrong"), 4),
        (ContextLengthError("wrong"), 4),
        (NetworkError("wrong"), 5),
        (Cancelled("wrong"), 130),
        (KeyboardInterrupt(), 130),
        (OSError("wrong"), 1),
        (MemoryError("wrong"), 4),
    ],
)
def test_errors_become_one_line_and_a_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("edgerun.hub.list_models", fail)
    result = run("list")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.strip().splitlines() == ["edgerun: " + (str(error) or "interrupted")]
    assert "Traceback" in run("--debug", "list").stderr


def test_a_reader_that_goes_away_is_no_noise(chat_model: Path) -> None:
    command = f"{sys.executable} -m edgerun list --aliases --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{", "")


def test_the_program_as_a_user_starts_it(program: Program) -> None:
    done = program("show", "absent.gguf")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("edgerun: absent.gguf: no such file")
    assert "Traceback" not in done.stderr
