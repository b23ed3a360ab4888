"""A model of every weight type loads and answers as the same model with its weights as plain numbers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgerun import LLM
from edgerun.cli.main import cli
from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.formats.quants import DEQUANTIZERS, dequantize
from edgerun.kernels import Kernels
from edgerun.kernels.interface import NEURON_TYPES
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from tests.kernels.blocks import random_blocks
from tests.models.instances import Instance, write

D, IDS = 256, [3, 1, 4, 1, 5]


def model(path: Path, type: GgmlType, **more: Any) -> Path:
    """One layer of F32 weights, whose matrices then become random blocks of `type`."""
    base = write(Instance("all-types", "llama", d=D, ff=D, head_dim=D // 4, layers=1, **more), path.with_suffix(".f32"))
    rng = np.random.default_rng(int(type))
    with open_gguf(base) as f32, GgufWriter(path, "llama") as writer:
        for key in f32.metadata:
            if not key.startswith("general."):
                writer.add(key, f32.metadata[key], f32.metadata.kind(key)[0])
        for name, info in f32.tensors.items():
            if len(info.shape) < 2 or "ffn_gate_inp" in name:
                writer.add_tensor(name, f32.raw(name).view("<f4"), GgmlType.F32)
            else:
                rows = int(np.prod(info.shape[:-1]))
                raw = random_blocks(rng, rows, info.shape[-1], type)
                writer.add_tensor(name, raw.reshape(*info.shape[:-1], -1), type)
    return path


def plain(path: Path, out: Path, factors: dict[str, Any] | None = None) -> Path:
    """The same model in F32, matrices times `factors`."""
    with open_gguf(path) as gguf, GgufWriter(out, "llama") as writer:
        for key in gguf.metadata:
            if not key.startswith("general."):
                writer.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
        for name, info in gguf.tensors.items():
            if not name.endswith(".scale"):
                weights = dequantize(gguf.raw(name), info.type) * np.float32((factors or {}).get(name, np.float32(1)))
                writer.add_tensor(name, weights.reshape(info.shape), GgmlType.F32)
    return out


def logits(path: Path) -> np.ndarray:
    with LLM(path, kernels="reference", context=32) as llm:
        return llm.logits(IDS)


@pytest.mark.parametrize("type", DEQUANTIZERS, ids=lambda type: type.name)
def test_every_type_answers(tmp_path: Path, type: GgmlType) -> None:
    path = model(tmp_path / "m.gguf", type)
    want = logits(plain(path, tmp_path / "plain.gguf"))
    got = logits(path)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("type", [GgmlType.IQ3_S, GgmlType.NVFP4], ids=lambda type: type.name)
def test_experts_of_every_type_answer(tmp_path: Path, type: GgmlType) -> None:
    path = model(tmp_path / "m.gguf", type, experts=4, used=2)
    want = logits(plain(path, tmp_path / "plain.gguf"))
    assert np.abs(logits(path) - want).max() <= 1e-4 * np.abs(want).max()


NEW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4", "Q1_0", "Q2_0")


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("experts", [0, 4])
def test_streamed_as_resident(tmp_path: Path, kernels: Kernels, name: str, experts: int) -> None:
    more = {"experts": experts, "used": 2} if experts else {}
    with open_gguf(model(tmp_path / "m.gguf", GgmlType[name], **more)) as gguf:
        spec = load_spec(gguf)
        resident = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        want = resident.forward(IDS, resident.new_cache(32), logits="all")
        kind, room = (
            (StreamedExpertStore, {"slots": 2, "wave_tokens": 2})
            if experts
            else (StreamedLayerStore, {"pinned": [], "wave_tokens": 2})
        )
        with closing(kind(gguf, spec, kernels, **room)) as store:
            streamed = Decoder(spec, store, kernels)
            got = streamed.forward(IDS, streamed.new_cache(32), logits="all")
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("type", NEURON_TYPES, ids=lambda type: type.name)
def test_neurons_of_every_type_answer(tmp_path: Path, type: GgmlType) -> None:
    path = model(tmp_path / "m.gguf", type, sparse=True)
    want = logits(plain(path, tmp_path / "plain.gguf"))
    assert np.abs(logits(path) - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("type", NEURON_TYPES, ids=lambda type: type.name)
def test_streamed_neurons_are_as_resident_ones(tmp_path: Path, kernels: Kernels, type: GgmlType) -> None:
    with open_gguf(model(tmp_path / "m.gguf", type, sparse=True)) as gguf:
        spec = load_spec(gguf)
        resident = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        want = resident.forward(IDS, resident.new_cache(32), logits="all")
        with closing(StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=2, neuron_slots=24)) as store:
            streamed = Decoder(spec, store, kernels)
            got = streamed.forward(IDS, streamed.new_cache(32), logits="all")
            statistics = store.statistics()
    assert statistics["neuron_misses"] > 24
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_show_names_a_new_type(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", GgmlType.IQ2_S)
    assert "IQ2_S" in CliRunner().invoke(cli, ["show", str(path)]).stdout


def with_scales(path: Path, scales: dict[str, np.ndarray]) -> Path:
    """The model with more tensors: factors of whole tensors, as NVFP4 files have them."""
    out = path.with_suffix(".scaled")
    with open_gguf(path) as gguf, GgufWriter(out, "llama") as writer:
        for key in gguf.metadata:
            if not key.startswith("general."):
                writer.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
        for name, info in gguf.tensors.items():
            writer.add_tensor(name, gguf.raw(name), info.type)
        for name, scale in scales.items():
            writer.add_tensor(name, scale.astype(np.float32), GgmlType.F32)
    return out


def test_the_scale_of_a_whole_tensor_counts(tmp_path: Path) -> None:
    path = model(tmp_path / "m.gguf", GgmlType.NVFP4)
    factors = {"attn_q": 0.5, "attn_output": 0.75, "ffn_gate": 1.5, "ffn_up": 0.25, "ffn_down": 1.25}
    names = {"output": 3.0, **{f"blk.0.{part}": factor for part, factor in factors.items()}}
    scaled = with_scales(path, {f"{name}.scale": np.array([factor]) for name, factor in names.items()})
    named = {f"{name}.weight": factor for name, factor in names.items()}
    want = logits(plain(path, tmp_path / "plain.gguf", named))
    assert np.abs(logits(scaled) - want).max() <= 1e-4 * np.abs(want).max()
    assert np.abs(logits(path) - want).max() > 1e-2 * np.abs(want).max(), "the factors change something"


def test_the_scales_of_experts_count(tmp_path: Path, kernels: Kernels) -> None:
    """One for each expert, resident and streamed."""
    path = model(tmp_path / "m.gguf", GgmlType.NVFP4, experts=4, used=2)
    parts = {f"blk.0.ffn_{part}_exps": np.array([0.5, 0.75, 1.5, 2.0]) * more for part, more in _OF_PARTS.items()}
    scaled = with_scales(path, {f"{name}.scale": factors for name, factors in parts.items()})
    named = {f"{name}.weight": factors[:, None, None].astype(np.float32) for name, factors in parts.items()}
    want = logits(plain(path, tmp_path / "plain.gguf", named))
    assert np.abs(logits(scaled) - want).max() <= 1e-4 * np.abs(want).max()
    assert np.abs(logits(path) - want).max() > 1e-2 * np.abs(want).max(), "the factors change something"
    with open_gguf(scaled) as gguf:
        spec = load_spec(gguf)
        resident = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        found = resident.forward(IDS, resident.new_cache(32), logits="all")
        with closing(StreamedExpertStore(gguf, spec, kernels, slots=3, wave_tokens=2)) as store:
            streamed = Decoder(spec, store, kernels)
            assert np.array_equal(streamed.forward(IDS, streamed.new_cache(32), logits="all"), found)


_OF_PARTS = {"gate": 1.0, "up": 0.3, "down": 1.7}


def test_scales_that_are_not_applied_are_refused(tmp_path: Path) -> None:
    path = with_scales(model(tmp_path / "m.gguf", GgmlType.NVFP4), {"token_embd.scale": np.ones(1)})
    with pytest.raises(UnsupportedError, match=r"factors for whole tensors \(1: token_embd.scale\)"):
        logits(path)
