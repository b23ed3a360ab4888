"""What a conversion may write: over nothing that is there, and only what edgerun itself loads."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hf_checkpoint import CONFIGS, write_checkpoint

from edgerun import LLM
from edgerun.convert import convert_checkpoint, quantize_gguf
from edgerun.convert import target as target_module
from edgerun.errors import EdgerunError, FormatError, UnsupportedError, UsageError
from edgerun.events import Progress
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from tests.models.instances import INSTANCES, write

STRANGE: list[Any] = [0, -1, 1, 7, 1 << 31, 1 << 70, 0.5, 1e-9, float("inf"), "x", None, True, [], [1, 2], {}]


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The same with one place changed or gone."""
    if isinstance(value, dict) and value and depth < 4 and rng.random() < 0.8:
        key, out = rng.choice(list(value)), dict(value)
        if rng.random() < 0.15:
            del out[key]
        else:
            out[key] = mutated(rng, value[key], depth + 1)
        return out
    if isinstance(value, list) and value and depth < 6 and rng.random() < 0.8:
        index, items = rng.randrange(len(value)), list(value)
        items[index] = mutated(rng, value[index], depth + 1)
        return items
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return value * rng.choice([0, 2, -1, 0.5, 3, 100])
    return rng.choice(STRANGE)


def converts_to_what_loads(source: Path, out: Path) -> bool:
    """Whether it converts; then it must load and compute. Otherwise nothing may be left."""
    try:
        convert_checkpoint(source, out, overwrite=True)
    except EdgerunError as error:
        assert str(error)
        left = {path.name for path in out.parent.iterdir()} - {source.name, out.name, "home"}
        assert not left, "half a file"
        return False
    with LLM(out, kernels="reference") as llm:
        llm.logits([1, 2, 3])
    return True


@pytest.mark.parametrize("seed", range(3))
def test_what_converts_loads(tmp_path: Path, seed: int) -> None:
    """A checkpoint with one thing changed is refused, or converts to a model that runs."""
    rng, converted = random.Random(seed), 0
    source = tmp_path / "checkpoint"
    for _ in range(50):
        kind = rng.choice(list(CONFIGS))
        write_checkpoint(source, kind)
        file = source / rng.choice(["config.json", "tokenizer.json", "config.json", "tokenizer_config.json"])
        if not file.exists():
            continue
        file.write_text(json.dumps(mutated(rng, json.loads(file.read_text()))))
        converted += converts_to_what_loads(source, tmp_path / "out.gguf")
    assert 0 < converted < 50


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3", {"rope_theta": 1.0}),
        ("olmoe", {"rms_norm_eps": 2.0}),
        ("mixtral", {"num_experts_per_tok": 200}),
        ("gemma3_text", {"sliding_window": 0}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 1e-9}}),
    ],
)
def test_numbers_that_no_model_has(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    write_checkpoint(tmp_path / "checkpoint", kind, **changes)
    out = tmp_path / "out.gguf"
    with pytest.raises((FormatError, UnsupportedError), match="checkpoint|config.json") as caught:
        convert_checkpoint(tmp_path / "checkpoint", out)
    assert not out.exists() and "edgerun-tmp" not in str(caught.value)


def test_over_nothing_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "checkpoint", "llama")
    model = write(INSTANCES["llama"], tmp_path / "model.gguf")
    out = tmp_path / "thesis.gguf"
    out.write_text("years of work")
    for make in (
        lambda **more: convert_checkpoint(tmp_path / "checkpoint", out, **more),
        lambda **more: quantize_gguf(model, out, "Q8_0", **more),
    ):
        with pytest.raises(UsageError, match="is there already.*--overwrite"):
            make()
        assert out.read_text() == "years of work"
        make(overwrite=True)
        with open_gguf(out) as gguf:
            assert gguf.architecture == "llama"
        out.write_text("years of work")
    os.mkfifo(tmp_path / "pipe")
    for strange in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError):
            quantize_gguf(model, strange, "Q8_0", overwrite=True)

    late = tmp_path / "late.gguf"  # somebody else makes it while it is written

    def make_it(event: object) -> None:
        if isinstance(event, Progress):
            late.write_text("theirs")

    with pytest.raises(UsageError, match="is there already"):
        quantize_gguf(model, late, "Q8_0", events=make_it)
    assert late.read_text() == "theirs"


def test_models_that_edgerun_does_not_run_are_quantised_all_the_same(tmp_path: Path) -> None:
    import numpy as np

    with GgufWriter(tmp_path / "in.gguf", "strange") as w:
        w.add_tensor("a.weight", np.ones((32, 32), np.float32), GgmlType.F32)
    with pytest.raises(EdgerunError):
        target_module.check_loads(tmp_path / "in.gguf")
    assert quantize_gguf(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0").types == {"Q8_0": 1}
