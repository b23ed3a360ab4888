"""Every tensor of a file is used under its one name, is declared to be of no use, or is refused: none is ignored."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufFile, GgufWriter, TensorInfo, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.models.shapes import known_tensors
from edgerun.weights import ResidentStore, make_catalog
from tests.models.instances import INSTANCES, PLAIN, RECURRENT, SPARSE, STREAMS, tokens_of, write

FAMILIES = [*PLAIN, *(each for each in (*RECURRENT, STREAMS[0]) if each.type == GgmlType.F32), *SPARSE]


def copy(source, target, extra=(), rename=None, without=(), **metadata):
    """The file again, with `extra` tensors (name -> f32 array) after its own and some renamed or left out."""
    with open_gguf(source) as gguf, GgufWriter(target, gguf.architecture) as w:
        for key in gguf.metadata:
            if key != "general.architecture" and key not in metadata:
                w.add(key, gguf.metadata[key], gguf.metadata.kind(key)[0])
        for key, value in metadata.items():
            w.add(key, value)
        for name, info in gguf.tensors.items():
            if name not in without:
                raw = np.array(gguf.raw(name))
                data = raw.view(np.float32).reshape(info.shape) if info.type is GgmlType.F32 else raw
                w.add_tensor((rename or {}).get(name, name), data, info.type)
        for name, array in dict(extra).items():
            w.add_tensor(name, array, GgmlType.F32)
    return target


def one_of_each(names):
    """Of every part of layers the one in layer 1, or in whatever layer has it."""
    layers = sorted(names, key=lambda name: name.startswith("blk.1."))
    return sorted({re.sub(r"^blk\.\d+", "", name): name for name in layers}.values())


def aliases(name):
    """Other spellings that a lenient reader would take for the same tensor."""
    found = [name + ".weight", name.upper(), name + " ", name.replace(".", "..", 1), "./" + name]
    if name.endswith(".weight"):
        found.append(name.removesuffix(".weight"))
    if name.startswith("blk."):
        for zero in ("0{}", "00{}", "+{}", " {}", "{}_"):
            found.append(re.sub(r"^blk\.(\d+)", lambda m, zero=zero: "blk." + zero.format(m[1]), name))
        found.append(re.sub(r"^blk\.(\d+)", lambda m: "blk." + chr(0x660 + int(m[1])), name))  # Arabic digits
    return found


@pytest.mark.parametrize("instance", FAMILIES, ids=lambda i: i.name)
def test_no_other_spelling_of_a_tensor_is_taken(tmp_path, instance):
    """Beside the tensor and instead of it; of another shape (the reported attack) and of the same, in turn."""
    path = write(instance, tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        names = one_of_each(gguf.tensors)
        shapes = {name: gguf.tensors[name].shape for name in names}
    rng = np.random.default_rng(1)
    for number, name in enumerate(names):
        spelling = aliases(name)
        alias = spelling[int(rng.integers(len(spelling)))]
        small = np.ones(tuple(max(1, n // 2) for n in shapes[name]), np.float32)
        extra = small if number % 2 else np.ones(shapes[name], np.float32)
        with pytest.raises(FormatError, match=re.escape(repr(alias)[1:-1])):
            opened_spec(copy(path, tmp_path / "beside.gguf", {alias: extra}))
        with pytest.raises(FormatError):
            opened_spec(copy(path, tmp_path / "instead.gguf", rename={name: alias}))


def opened_spec(path):
    with open_gguf(path) as gguf:
        return load_spec(gguf)


@pytest.mark.parametrize(
    "alias", ["blk.0.ffn_up_exps", "blk.00.ffn_up_exps.weight", "blk.0.ffn_down_exps", "blk.0.ffn_gate_exps"]
)
def test_an_expert_by_another_name_is_refused(tmp_path, alias):
    """The report: an unchecked tensor took the checked one's place and memory behind it was read."""
    path = copy(write(INSTANCES["mixtral"], tmp_path / "m.gguf"), tmp_path / "b.gguf", {alias: np.ones((4, 8, 8))})
    with pytest.raises(FormatError, match=re.escape(alias)):
        opened_spec(path)


@pytest.mark.parametrize("alias", ["blk.0.ffn_up", "blk.0.ffn_down_t", "blk.00.ffn_up.weight"])
def test_neurons_by_another_name_are_refused(tmp_path, alias):
    path = copy(write(INSTANCES["relu"], tmp_path / "m.gguf"), tmp_path / "b.gguf", {alias: np.ones((8, 64))})
    with pytest.raises(FormatError, match=re.escape(alias)):
        opened_spec(path)


def test_experts_one_by_one_are_refused_as_old(tmp_path):
    names = {f"blk.0.ffn_{part}_exps.weight": f"blk.0.ffn_{part}.0.weight" for part in ("gate", "up", "down")}
    path = copy(write(INSTANCES["mixtral"], tmp_path / "m.gguf"), tmp_path / "old.gguf", rename=names)
    with pytest.raises(UnsupportedError, match="until April 2024"):
        opened_spec(path)


def test_halves_beside_the_whole_are_not_used(tmp_path):
    """ik_llama.cpp's files of DeepSeek hold keys' and values' matrices together and apart, in shapes of its own."""
    halves = {f"blk.0.attn_{half}_b.weight": np.ones((16, 128), np.float32) for half in "kv"}
    path = copy(write(INSTANCES["deepseek2-before-2025"], tmp_path / "m.gguf"), tmp_path / "both.gguf", halves)
    assert any("2: blk.0.attn_k_b.weight" in line for line in opened_spec(path).unused)


@pytest.mark.parametrize("pair", [("x", "x.weight"), ("blk.0.x.bias", "blk.00.x.bias"), ("a.7.b", "a.07.b.weight")])
def test_two_names_of_one_tensor_are_no_file(tmp_path, pair):
    """Before any model is known: converters and tools open files too."""
    with GgufWriter(tmp_path / "m.gguf", "llama") as w:
        for name in pair:
            w.add_tensor(name, np.ones(32, np.float32), GgmlType.F32)
    with pytest.raises(FormatError, match="two names"):
        open_gguf(tmp_path / "m.gguf")


_STRAY = [
    "output.bias", "output_norm.bias", "token_embd_norm.weight", "position_embd.weight", "blk.0.attn_norm.bias",
    "blk.0.attn_q_lora.weight", "blk.0.ffn_norm_2.weight", "blk.1.exp_probs_b.bias", "blk.0.attn_k.weight_scale",
    "blk.0.ffn_gate_exps.scale", "blk.0.ffn_gate_inp.bias", "blk.0.attn_sinks.weight", "blk.9.attn_norm.weight",
    "blk.0.layer_output_scale.weight", "lm_head.weight", "blk.0.attn_rot_embd.weight",
]  # fmt: skip


@pytest.mark.parametrize("instance", FAMILIES, ids=lambda i: i.name)
def test_what_the_family_does_not_know_is_refused(tmp_path, instance):
    path = write(instance, tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        known = known_tensors(load_spec(gguf))
    for name in _STRAY:
        if name not in known:
            with pytest.raises(UnsupportedError, match=re.escape(name)):
                opened_spec(copy(path, tmp_path / "b.gguf", {name: np.full(instance.d, 5.0, np.float32)}))


@pytest.mark.parametrize("name", [i.name for i in FAMILIES])
def test_every_tensor_of_a_file_matters(tmp_path, kernels, name):
    """Whatever is accepted changes the logits when it changes. So nothing is read under a name and then ignored."""
    instance = INSTANCES[name]
    path = write(instance, tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        optional = {n: shape for n, (shape, needed) in known_tensors(spec).items() if not needed}
        used = list(spec.tensors)
    extra = {
        n: np.linspace(0.3, 0.9, math.prod(shape)).astype(np.float32).reshape(shape)
        for n, shape in optional.items()
        if n not in used and not n.startswith("rope_")
    }
    if instance.tied:
        extra.pop("output.weight")
    base = logits(copy(path, tmp_path / "base.gguf", extra), kernels)
    for changed in one_of_each([*used, *extra]):
        if changed == "rope_factors_long.weight":  # of contexts beyond the original
            continue
        with open_gguf(tmp_path / "base.gguf") as gguf:
            array = np.array(gguf.raw(changed))
            info = gguf.tensors[changed]
        if info.type is not GgmlType.F32:
            continue
        floats = array.view(np.float32).reshape(info.shape)[..., ::-1] * np.float32(1.5)  # what is alike may not matter
        other = copy(tmp_path / "base.gguf", tmp_path / "c.gguf", {changed: floats}, without=(changed,))
        assert not np.array_equal(logits(other, kernels), base), f"{changed} changes nothing"


def logits(path, kernels):
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, context=64)
        return decoder.forward(tokens_of(INSTANCES["llama"]), decoder.new_cache(64), logits="all")


@pytest.mark.parametrize(
    ("instance", "name", "shape"),
    [
        ("llama", "blk.0.attn_q.input_scale", (1,)),
        ("qwen3moe", "blk.1.ffn_up_exps.input_scale", (8,)),
        ("gemma3", "v.patch_embedding.weight", (4, 64)),
        ("gemma3", "mm.mm_input_projection.weight", (64, 64)),
        ("qwen3", "cls.output.weight", (2, 64)),
        ("gemma4-fed", "blk.5.attn_k.weight", (32, 64)),  # as published: layer 5 reads what layer 3 keeps
        ("gemma4-fed", "blk.5.attn_k_norm.weight", (16,)),
    ],
)
def test_harmless_ones_are_said_once_and_change_nothing(tmp_path, kernels, instance, name, shape):
    path = write(INSTANCES[instance], tmp_path / "m.gguf")
    more = copy(path, tmp_path / "b.gguf", {name: np.full(shape, 7.0, np.float32)})
    spec = opened_spec(more)
    assert name not in spec.tensors
    (notice,) = spec.unused
    assert name in notice
    assert not opened_spec(path).unused
    assert np.array_equal(logits(path, kernels), logits(more, kernels))


@pytest.mark.parametrize(
    ("instance", "part"), [("qwen35moe", "ffn_gate_inp_shexp.weight"), ("glm4moe", "exp_probs_b.bias")]
)
def test_a_vector_may_lie_as_a_matrix_of_one_row(tmp_path, kernels, instance, part):
    """As llama.cpp's converter writes them since it squeezes no tensors any more."""
    path = write(INSTANCES[instance], tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        rows = {n: np.array(gguf.raw(n)).view(np.float32)[None] for n in gguf.tensors if n.endswith(part)}
    assert rows
    assert np.array_equal(logits(path, kernels), logits(copy(path, tmp_path / "b.gguf", rows, without=rows), kernels))


def test_layers_that_predict_further_tokens_are_harmless_where_the_file_declares_them(tmp_path, kernels):
    path = write(INSTANCES["qwen3"], tmp_path / "m.gguf")
    extra = {"blk.3.nextn.eh_proj.weight": np.ones((64, 128), np.float32), "blk.3.attn_norm.weight": np.ones(64)}
    declared = {"qwen3.nextn_predict_layers": 1, "qwen3.block_count": 4}
    more = copy(path, tmp_path / "b.gguf", extra, **declared)
    spec = opened_spec(more)
    assert spec.n_layers == 3
    assert "nextn" in spec.unused[0]
    assert np.array_equal(logits(path, kernels), logits(more, kernels))
    with pytest.raises(FormatError, match="blk.3"):
        opened_spec(copy(path, tmp_path / "c.gguf", extra))
    with pytest.raises(FormatError, match="nextn_predict_layers"):
        opened_spec(copy(path, tmp_path / "d.gguf", **{"qwen3.nextn_predict_layers": 3}))


def test_harmless_ones_are_said_when_a_model_is_loaded(tmp_path):
    from edgerun import LLM
    from edgerun.events import Notice

    path = write(INSTANCES["llama"], tmp_path / "m.gguf")
    extra = {f"blk.{layer}.attn_q.input_scale": np.ones(1, np.float32) for layer in range(3)}
    events = []
    with LLM(copy(path, tmp_path / "b.gguf", extra), kernels="reference", events=events.append):
        notices = [event.text for event in events if isinstance(event, Notice) and "input_scale" in event.text]
    assert len(notices) == 1
    assert "3: blk.0.attn_q.input_scale, blk.1" in notices[0]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("blk.0.attn_q.bias", np.ones(63, np.float32)),
        ("blk.0.attn_q.scale", np.ones(2, np.float32)),
        ("rope_freqs.weight", np.ones(7, np.float32)),
        ("output.weight", np.ones((96, 32), np.float32)),
    ],
)
def test_optional_tensors_are_checked_like_the_others(tmp_path, name, array):
    path = write(INSTANCES["llama"], tmp_path / "m.gguf")
    with pytest.raises(FormatError, match=re.escape(name)):
        opened_spec(copy(path, tmp_path / "b.gguf", {name: array}, without=(name,)))


@pytest.mark.parametrize("names", [("long",), ("short",), ("long", "short")])
def test_factors_that_would_be_passed_over_are_refused(tmp_path, names):
    """One of a pair, which some contexts would go without; and a pair beside the one that is used."""
    path = write(INSTANCES["llama3-rope" if len(names) == 2 else "llama"], tmp_path / "m.gguf")
    extra = {f"rope_factors_{name}.weight": np.ones(8, np.float32) for name in names}
    with pytest.raises(FormatError, match="rope_factors_"):
        opened_spec(copy(path, tmp_path / "b.gguf", extra))


def test_a_catalog_is_made_of_canonical_names_only():
    good = {"token_embd.weight": (96, 64), "output_norm.weight": (64,), "blk.0.attn_q.weight": (64, 64)}

    def infos(shapes):
        return {n: TensorInfo(n, s, GgmlType.F32, 4 * int(np.prod(s)), None, 0) for n, s in shapes.items()}

    assert make_catalog(infos(good), 1).layers[0].matrices.keys() == {"attn_q"}
    recurrent = {"blk.0.ssm_a": (8,), "blk.0.ssm_conv1d.weight": (96, 4), "blk.0.shortconv.in_proj.weight": (192, 64)}
    layer = make_catalog(infos({**good, **recurrent, "blk.0.ssm_dt.bias": (8,)}), 1).layers[0]
    assert layer.vectors.keys() == {"ssm_a.", "ssm_conv1d", "ssm_dt.bias"}
    assert layer.matrices.keys() == {"attn_q", "shortconv.in_proj"}
    for name in ("blk.0.ffn_up", "blk.00.ffn_up.weight", "output_norm", "blk.1.ffn_up.weight", "blk.0.a.b.c.weight"):
        with pytest.raises(FormatError, match=re.escape(name)):
            make_catalog(infos({**good, name: (64, 64)}), 1)
    with pytest.raises(FormatError, match="token_embd"):
        make_catalog({}, 1)


def test_stores_see_checked_tensors_only(tmp_path, kernels):
    """A spec that was not checked against the file holds no tensors, so no store can be made of it."""
    from edgerun.models.reading import read_spec

    with open_gguf(write(INSTANCES["llama"], tmp_path / "m.gguf")) as gguf:
        assert isinstance(gguf, GgufFile)
        with pytest.raises(FormatError, match="token_embd"):
            ResidentStore(gguf, read_spec(gguf), kernels)
