"""A converted checkpoint computes what the original does: our decoder against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_reference
import numpy as np
import pytest
from hf_checkpoint import CONFIGS, config_of, write_checkpoint

from edgerun.convert import convert_checkpoint
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_kernels
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [(model_type, {}) for model_type in CONFIGS]
    + [
        ("llama", {"hidden_act": "relu"}),
        ("mistral", {"hidden_act": "relu2"}),
        ("qwen2", {"hidden_act": "relu"}),
        ("qwen3", {"hidden_act": "relu"}),
    ],
)
def test_logits_of_every_family(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    weights = write_checkpoint(tmp_path, model_type, **changes)
    ids = list(range(3, 43))
    expected = hf_reference.logits(config_of(model_type, **changes), weights, ids)
    convert_checkpoint(tmp_path, tmp_path / "out.gguf")
    kernels = load_kernels("reference")
    with open_gguf(tmp_path / "out.gguf") as g:
        spec = load_spec(g)
        assert spec.sparse == bool(changes)
        decoder = Decoder(spec, ResidentStore(g, spec, kernels), kernels)
        logits = decoder.forward(np.asarray(ids, np.int32), decoder.new_cache(64), logits="all")
    assert logits is not None
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < 2e-3, f"relative error {error:.1e}"  # the KV cache holds 16-bit floats
