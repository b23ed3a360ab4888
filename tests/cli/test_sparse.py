"""A ReLU checkpoint on its way to answers: converted, quantised, planned, packed, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Run
from edgerun.formats.gguf import open_gguf
from tests.convert import hf_checkpoint
from tests.convert.hf_checkpoint import write_checkpoint

NEURONS = ("blk.0.ffn_up.weight", "blk.0.ffn_down_t.weight")


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS", "Q5_1", "BF16"])
def test_neurons_of_the_type_that_was_asked_for(
    run: Run, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_checkpoint, "D", 256)
    write_checkpoint(tmp_path / "hf", "llama", hidden_act="relu", hidden_size=256, head_dim=hf_checkpoint.HEAD)
    floats, model = tmp_path / "floats.gguf", tmp_path / "model.gguf"
    for command in (("convert", tmp_path / "hf", floats), ("quantize", floats, model, "--type", kind)):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
    with open_gguf(model) as gguf:
        assert {gguf.tensors[name].type.name for name in NEURONS} == {kind}
    planned = run("plan", model, "-c", 64, "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["memory"]["mode"] == "resident"
    logits = {}
    for name in ("auto", "reference"):
        out = tmp_path / f"{name}.npy"
        done = run("bench", model, "-p", 8, "-n", 3, "-r", 1, "-c", 64, "--kernels", name, "--logits", out, "--json")
        assert done.exit_code == 0, done.stderr
        logits[name] = np.load(out)
    error = np.linalg.norm(logits["auto"] - logits["reference"]) / np.linalg.norm(logits["reference"])
    assert error < 0.1  # int8 activations
    packed = run("pack", model, "--json")
    assert packed.exit_code == 0, packed.stderr
    assert json.loads(packed.stdout)["kind"] == "layers"


def test_rows_that_are_no_whole_blocks_get_a_narrower_type_and_a_word(run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama", hidden_act="relu")
    done = run("convert", tmp_path / "hf", tmp_path / "m.gguf", "--quant", "Q4_K")
    assert done.exit_code == 0, done.stderr
    assert "no whole blocks of 256" in done.stdout + done.stderr
    with open_gguf(tmp_path / "m.gguf") as gguf:
        assert {gguf.tensors[name].type.name for name in NEURONS} == {"Q5_0"}
