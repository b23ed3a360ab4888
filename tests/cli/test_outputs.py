"""No command writes over what edgerun did not make, unless it is told to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Run
from tests.convert.hf_checkpoint import write_checkpoint
from tests.models.instances import INSTANCES, write

THEIRS = {
    "a model": lambda path: write(INSTANCES["llama"], path),
    "a text": lambda path: path.write_text("years of work"),
    "some JSON": lambda path: path.write_text('{"a": [1, 2]}'),
    "an array": lambda path: np.save(path.open("wb"), np.ones((3, 5), np.float32)),
}


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[object]]:
    """option -> a command that writes to what comes after it."""
    model = write(INSTANCES["olmoe"], tmp_path / "model.gguf")
    write_checkpoint(tmp_path / "checkpoint", "llama")
    bench = ["bench", model, "-p", 4, "-n", 2, "-r", 1, "--json"]
    return {
        "bench --record-routing": [*bench, "--record-routing"],
        "bench without --json": ["bench", model, "-p", 4, "-n", 2, "-r", 1, "--record-routing"],
        "bench --logits": [*bench, "--logits"],
        "convert": ["convert", tmp_path / "checkpoint"],
        "quantize": ["quantize", model, "--type", "Q8_0"],
    }


@pytest.mark.parametrize("what", THEIRS)
def test_what_is_there_stays(run: Run, tmp_path: Path, commands: dict[str, list[object]], what: str) -> None:
    make: Callable[[Path], object] = THEIRS[what]
    for name, command in commands.items():
        out = tmp_path / "out"
        make(out)
        before = out.read_bytes()
        done = run(*command, out)
        assert done.exit_code == 2, name
        assert str(out) in done.stderr and "--overwrite" in done.stderr
        assert out.read_bytes() == before
        done = run(*command, out, "--overwrite")
        assert done.exit_code == 0, done.stderr
        assert out.read_bytes() != before
        out.unlink()


def test_what_the_option_made_is_written_anew(run: Run, tmp_path: Path, commands: dict[str, list[object]]) -> None:
    for name in ("bench --record-routing", "bench --logits"):
        out = tmp_path / name.replace(" ", "")
        for _ in range(2):
            assert run(*commands[name], out).exit_code == 0
        out.write_bytes(b"")
        assert run(*commands[name], out).exit_code == 0, "an empty file, as mktemp makes"
    assert np.array(json.loads((tmp_path / "bench--record-routing").read_text())).ndim == 3


def test_the_model_itself(run: Run, tmp_path: Path, commands: dict[str, list[object]]) -> None:
    """As in `bench model.gguf --record-routing model.gguf`."""
    model = tmp_path / "model.gguf"
    shutil.copy(model, tmp_path / "kept.gguf")
    for name in ("bench --record-routing", "bench --logits", "quantize"):
        assert run(*commands[name], model).exit_code == 2
        assert model.read_bytes() == (tmp_path / "kept.gguf").read_bytes()


def test_folders_and_devices(run: Run, tmp_path: Path, commands: dict[str, list[object]]) -> None:
    for name, command in commands.items():
        assert run(*command, tmp_path, "--overwrite").exit_code == 2, name
        if name.startswith("bench"):
            assert run(*command, os.devnull).exit_code == 0
        assert Path(os.devnull).is_char_device()
