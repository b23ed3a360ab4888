"""Hugging Face directories that cannot be converted: refused with an error that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_checkpoint import (
    write_bpe_tokenizer,
    write_checkpoint,
    write_safetensors,
)

from edgerun.convert import convert_checkpoint
from edgerun.errors import EdgerunError, FormatError, NotFoundError, UnsupportedError, UsageError
from edgerun.formats.gguf import GgufFile, open_gguf


def convert(folder: Path, **options: Any) -> GgufFile:
    convert_checkpoint(folder, folder / "out.gguf", overwrite=True, **options)
    return open_gguf(folder / "out.gguf")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "mamba"}, UnsupportedError, "'mamba' is not one .* converts: llama, mistral"),
        ({"hidden_size": None}, FormatError, "hidden_size is missing"),
        ({"hidden_size": "32"}, FormatError, "hidden_size is '32'"),
        ({"num_hidden_layers": -1}, FormatError, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 3}, FormatError, "no model.layers.2"),
        ({"num_hidden_layers": 1}, UnsupportedError, "tensors that its family does not"),
        ({"intermediate_size": 65}, FormatError, "by config.json it is"),
        ({"num_key_value_heads": 3}, FormatError, "do not share"),
        ({"vocab_size": 63}, FormatError, "by config.json it is"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, UnsupportedError, "quantised already"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, UnsupportedError, "'dynamic'"),
        ({"rope_scaling": [1]}, FormatError, "not an object"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1e29}},
            FormatError,
            "original_max_position_embeddings is 1e.29, not a count",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0.5}},
            FormatError,
            "original_max_position_embeddings is 0.5, not a count",
        ),
        ({"rope_theta": "x"}, FormatError, "rope_theta is 'x'"),
        ({"rms_norm_eps": [1]}, FormatError, "rms_norm_eps is"),
        ({"head_dim": 7}, FormatError, "cannot be rotated"),
        ({"partial_rotary_factor": 2.0}, FormatError, "cannot be rotated"),
        ({"vocab_size": (1 << 31) - 1}, FormatError, "by config.json it is"),
        ({"num_hidden_layers": (1 << 31) - 1}, FormatError, "no model.layers.2"),
    ],
)
def test_configs_that_cannot_be(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    write_checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        convert(tmp_path)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": None}, "num_local_experts is missing"),
        ({"num_local_experts": 0}, "num_local_experts is 0"),
        ({"num_local_experts": -1}, "num_local_experts is -1"),
        ({"num_local_experts": (1 << 31) - 1}, "by config.json it is"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
    ],
)
def test_experts_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path, "mixtral")
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=message):
        convert(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such checkpoint"):
        convert_checkpoint(tmp_path / "absent", tmp_path / "out.gguf")
    with pytest.raises(NotFoundError, match="config.json"):
        convert(tmp_path)
    write_checkpoint(tmp_path, "llama")
    with pytest.raises(UsageError, match="give the directory"):
        convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "out.gguf")
    with pytest.raises(NotFoundError, match="no such tokenizer"):
        convert(tmp_path, tokenizer=tmp_path / "absent.json")
    with pytest.raises(UsageError, match="does not quantise to 'IQ3_S'"):
        convert(tmp_path, quant="IQ3_S")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match="neither tokenizer.json nor tokenizer.model"):
        convert(tmp_path)
    write_bpe_tokenizer(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(FormatError, match="truncated"):
        convert(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="safetensors"):
        convert(tmp_path)
    assert not (tmp_path / "out.gguf").exists()


def check_strange_values(path: Path, whole: dict[str, Any], places: list[tuple[dict[str, Any], str]]) -> None:
    """A checkpoint's JSON file `whole`, with every strange value at each of its places: some are converted, some
    refused with an EdgerunError, and nothing else happens."""
    outcomes = []
    for holder, key in places:
        kept = holder[key]
        for value in STRANGE:
            holder[key] = value
            path.write_text(json.dumps(whole))
            try:
                convert(path.parent).close()
                outcomes.append(True)
            except EdgerunError:
                outcomes.append(False)
        holder[key] = kept
    assert any(outcomes)
    assert not all(outcomes)


STRANGE = [None, True, -1, 0, 1, 3.5, 1e308, (1 << 31) - 1, 1 << 70, "text", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "phi3", "gemma3_text"])
def test_strange_config_values_give_typed_errors(tmp_path: Path, model_type: str) -> None:
    """Every key, also those inside rope_scaling, with values of every kind: converted, or an EdgerunError."""
    write_checkpoint(tmp_path, model_type)
    whole = json.loads((tmp_path / "config.json").read_text())
    scaling = whole.get("rope_scaling") or {}
    places = [(whole, key) for key in whole] + [(scaling, key) for key in scaling]
    check_strange_values(tmp_path / "config.json", whole, places)


def test_strange_tokenizer_values_give_typed_errors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    places = [(tokenizer, key) for key in tokenizer] + [(tokenizer["model"], key) for key in tokenizer["model"]]
    places += [(tokenizer["added_tokens"][0], key) for key in tokenizer["added_tokens"][0]]
    check_strange_values(tmp_path / "tokenizer.json", tokenizer, places)


def test_a_sparse_model_with_biases_where_neurons_have_none(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, "llama", hidden_act="relu")
    for part, rows in (("up_proj", 64), ("down_proj", 32)):
        name = f"model.layers.0.mlp.{part}.bias"
        write_safetensors(tmp_path / "model.safetensors", weights | {name: np.zeros(rows, np.float32)})
        with pytest.raises(UnsupportedError, match="bias on"):
            convert(tmp_path)
