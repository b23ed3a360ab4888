"""Qualcomm's compiler takes our graphs for a Snapdragon's NPU. It runs anywhere; the NPU is not needed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgerun.errors import UnsupportedError
from edgerun.models.families import FAMILIES
from edgerun.prefill.build import BuiltModel
from edgerun.prefill.choice import fit_scheme
from edgerun.prefill.providers import Device, compile_graph, compile_ladder, find_devices
from edgerun.prefill.schemes import SCHEMES
from tests.models.instances import INSTANCES
from tests.prefill.making import build
from tests.prefill.planting import WIDE, write_planted

qnn = pytest.importorskip("onnxruntime_qnn")
TOKENS = 128
# one instance of every family and of what changes graphs: biases, experts, norms, fused parts
FAMILY_NAMES = ["llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe", "phi3", "gemma2", "gemma3"]
FAMILY_NAMES += ["bitnet", "smallthinker"]


@pytest.fixture(scope="module")
def htp() -> tuple[Device, dict[str, str]]:
    """The device that compiles, and the chip: a Snapdragon 8 Gen 3's."""
    (device,) = (each for each in find_devices()[0] if each.kind.name == "qnn" and each.compiles_only)
    return device, {"backend_path": qnn.get_qnn_htp_path(), "soc_model": "57", "htp_arch": "75"}


def compile_layer(htp, model, built: BuiltModel, out: Path) -> int:
    """All graphs of the first layer, each whole on the NPU; returns their bytes. UnsupportedError where one is
    refused."""
    device, chip = htp
    graphs = [each for each in built.graphs(model.spec) if each.layer == 0]
    out.mkdir()
    for graph in graphs:
        compile_graph(device, built.folder / graph.name, out / graph.name, chip)
        (node,) = onnx.load(out / graph.name).graph.node
        assert node.op_type == "EPContext", "nothing is left to another provider"
    return sum((out / graph.name).stat().st_size for graph in graphs)


def test_all_families_are_here():
    with_graphs = {name for name, family in FAMILIES.items() if not family.short_convolutions}
    assert {INSTANCES[name].arch for name in FAMILY_NAMES} == with_graphs


@pytest.mark.parametrize("scheme", ["fp16", "w8a8", "w8a16", "w4a16"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_layer_is_accepted(models, tmp_path, htp, name, scheme):
    model = models(name)
    mixture = model.spec.n_experts > 0
    built = build(model, tmp_path / "built", fit_scheme(htp[0].kind, SCHEMES[scheme]), (TOKENS,), experts=mixture)
    assert len(built.graphs(model.spec)) == model.spec.n_layers * (3 if mixture else 2)
    assert compile_layer(htp, model, built, tmp_path / "compiled") > 10_000


def test_graphs_that_are_cut_for_the_shadow(tmp_path, kernels, htp):
    from tests.prefill.making import load

    model = load(WIDE, write_planted(tmp_path / "planted.gguf", ("norms", "neurons", "values"), 60.0), kernels)
    built = build(model, tmp_path / "built", fit_scheme(htp[0].kind, SCHEMES["w8a8"]), (TOKENS,))
    assert len(built.graphs(model.spec)) == 4 * WIDE.layers
    assert compile_layer(htp, model, built, tmp_path / "compiled") > 10_000


def test_what_it_cannot_do_is_said(models, tmp_path, htp):
    """Scales of blocks of 32 weights: why `fit_scheme` takes them away."""
    model = models("llama")
    built = build(model, tmp_path / "built", "w4a16", (TOKENS,))
    with pytest.raises(UnsupportedError, match="qnn-cpu refuses layer-000-.*: ."):
        compile_layer(htp, model, built, tmp_path / "compiled")


def test_a_ladder_shares_its_weights(tmp_path, kernels, htp):
    from tests.prefill.making import load

    device, chip = htp
    model = load(WIDE, write_planted(tmp_path / "model.gguf", (), 1.0), kernels)
    built = build(model, tmp_path / "built", fit_scheme(device.kind, SCHEMES["w8a16"]), (32, 128, 256))
    ladder = [each for each in built.graphs(model.spec) if each.layer == 0 and "down" in each.name]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    compile_ladder(device, [built.folder / each.name for each in ladder], together, chip)
    for each in ladder:
        compile_graph(device, built.folder / each.name, alone / each.name, chip)
    (weights,) = together.glob("*.bin")
    named = {str(onnx.load(together / each.name).graph.node[0].attribute) for each in ladder}
    assert len(named) == 3 and all(weights.name in text for text in named), "all three take theirs from it"
    separate = sum((alone / each.name).stat().st_size for each in ladder)
    assert weights.stat().st_size < 0.6 * separate
