"""A ReLU checkpoint on its way to answers: converted, quantised, planned, packed, run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Run
from edgerun.formats.gguf import open_gguf
from tests.convert.hf_checkpoint import write_checkpoint

NEURONS = ("blk.0.ffn_up.weight", "blk.0.ffn_down_t.weight")


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS", "Q5_1", "BF16"])
def test_neurons_of_the_type_that_was_asked_for(run: Run, tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path / "hf", "llama", hidden_act="relu", hidden_size=256, intermediate_size=320)
    floats, model = tmp_path / "floats.gguf", tmp_path / "model.gguf"
    for command in (("convert", tmp_path / "hf", floats), ("quantize", floats, model, "--type", kind)):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
    with open_gguf(model) as gguf:
        assert {gguf.tensors[name].type.name for name in NEURONS} == {kind}
    planned = run("plan", model, "-c", 64, "--json")
    assert planned.exit_code == 0, planned.stderr
    assert json.loads(planned.stdout)["memory"]["mode"] == "resident"
    answer = ("run", model, "a b", "-n", 6, "--temperature", 0, "-c", 64, "--raw")
    replies = [run(*answer)]
    assert run("pack", model).exit_code == 0
    replies.append(run(*answer))
    assert [each.exit_code for each in replies] == [0, 0], replies[0].stderr
    assert replies[0].stdout == replies[1].stdout


def test_rows_that_are_no_whole_blocks_get_a_narrower_type_and_a_word(run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama", hidden_act="relu")
    done = run("convert", tmp_path / "hf", tmp_path / "m.gguf", "--quant", "Q4_K")
    assert done.exit_code == 0, done.stderr
    assert "no whole blocks of 256" in done.stdout + done.stderr
    with open_gguf(tmp_path / "m.gguf") as gguf:
        assert {gguf.tensors[name].type.name for name in NEURONS} == {"Q5_0"}
