"""What is refused to a model is known from its header, in the words in which it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models.instances import INSTANCES, write
from tiny_model import make_tiny_model

from edgerun import LLM
from edgerun.api.refusals import Refusals, refusals_of
from edgerun.cluster.shares import divide
from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec

OF_EACH = {instance.arch: instance for instance in reversed(INSTANCES.values())}


def test_several_devices(tmp_path: Path) -> None:
    refused = refusals_of(write(OF_EACH["falcon-h1"], tmp_path / "falcon-h1.gguf"))
    assert "two mixers" in refused.devices and refused.lines()["several devices"] == f"no: {refused.devices}"


def test_a_mixtures_experts(tmp_path: Path) -> None:
    model = write(OF_EACH["gpt-oss"], tmp_path / "gpt-oss.gguf")
    refused = refusals_of(model)
    assert not refused.prompts and refused.expert_prompts in refused.lines()["prompts on"]
    with pytest.raises(UnsupportedError, match=f"{refused.expert_prompts}; leave out :experts"):
        LLM(model, prefill="ort-cpu:w8a8:experts", context=64)


def test_sparse_neurons(tmp_path: Path) -> None:
    """Several devices compute them, but not with the same tokens whatever their number."""
    with open_gguf(write(INSTANCES["relu"], tmp_path / "relu.gguf")) as gguf:
        spec, refused = load_spec(gguf), refusals_of(gguf.path)
        assert "not those that fire" in refused.prompts and not refused.devices
        assert len(divide(spec, spec.tensors, [1, 1])) == 2
        with pytest.raises(UnsupportedError, match=refused.same_tokens):
            divide(spec, spec.tensors, [1, 1], in_units=True)
    assert "tokens may differ" in refused.lines()["several devices"]


def test_what_does_not_load_at_all(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "x.gguf", arch="sideways")
    lines = refusals_of(model).lines()
    assert list(lines) == ["runs"] and "'sideways' ('tiny') is not supported" in lines["runs"]


def test_nothing_is_refused_to_a_plain_model(tmp_path: Path) -> None:
    found: dict[str, Any] = refusals_of(write(INSTANCES["qwen3"], tmp_path / "qwen3.gguf")).as_dict()
    assert found == Refusals().as_dict() == {}
