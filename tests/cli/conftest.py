"""Running commands in this process, and as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_model import make_tiny_model

from edgerun import LLM
from edgerun.cli.main import cli
from edgerun.kernels.choice import candidates, write_speeds

Run = Callable[..., Result]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """run(*arguments, stdin=None) -> click's Result, stdout and stderr apart."""

    def invoke(*arguments: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture
def program() -> Program:
    """program(*arguments, stdin=None) -> the finished process of `python -m edgerun`."""

    def start(*arguments: object, stdin: str = "", **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgerun", *map(str, arguments)]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload, no-any-return]

    return start


@pytest.fixture
def sets_measured(user_home: Path) -> None:
    """As after a first `doctor`: the fastest instruction set is known. Measuring takes a minute, nearly all of it for
    compiling sets that no other test needs."""
    write_speeds({candidates()[0].name: 1.0})


def load(path: Path) -> LLM:
    """The model as the commands load it: with the kernels that EDGERUN_KERNELS names."""
    return LLM(path, kernels=os.environ.get("EDGERUN_KERNELS", "auto"))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-F32.gguf", context=200_000)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "base.gguf", chat=False)
