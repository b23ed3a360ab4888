"""A converted checkpoint computes what the original does: our decoder against plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_reference
import numpy as np
import pytest
from hf_checkpoint import CONFIGS, config_of, write_checkpoint
from hf_recorded import IDS, RECORDED, write_recorded

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
    logits, is_sparse = computed(tmp_path / "out.gguf", ids)
    assert is_sparse == bool(changes)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < 2e-3, f"relative error {error:.1e}"  # the KV cache holds 16-bit floats


def computed(path: Path, ids: list[int]) -> tuple[np.ndarray[Any, Any], bool]:
    """(tokens, vocab) f32, and whether the model is one of neurons that mostly do not fire."""
    kernels = load_kernels("reference")
    with open_gguf(path) as g:
        spec = load_spec(g)
        decoder = Decoder(spec, ResidentStore(g, spec, kernels), kernels)
        logits = decoder.forward(np.asarray(ids, np.int32), decoder.new_cache(64), logits="all")
        assert logits is not None
        return logits, spec.sparse


@pytest.mark.parametrize("name", RECORDED)
def test_logits_that_transformers_computed(tmp_path: Path, name: str) -> None:
    write_recorded(tmp_path, name)
    convert_checkpoint(tmp_path, tmp_path / "out.gguf")
    logits, _ = computed(tmp_path / "out.gguf", IDS)
    expected = np.load(Path(__file__).parent / "golden" / f"{name}.npy", allow_pickle=False)
    error = np.linalg.norm(logits[3::4] - expected) / np.linalg.norm(expected)
    assert error < 3e-3  # Gemma 3n's deviations are of n - 1 in llama.cpp and here, of n in transformers


@pytest.mark.parametrize(("said", "cap"), [({"final_logit_softcapping": None}, 0.0), ({}, 30.0)])
def test_gemma4_may_have_no_cap(tmp_path: Path, said: dict[str, Any], cap: float) -> None:
    """Where its config says that there is none; a file that says nothing has one of 30."""
    write_checkpoint(tmp_path, "gemma4_text", **said)
    convert_checkpoint(tmp_path, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as g:
        assert load_spec(g).logit_softcap == cap
