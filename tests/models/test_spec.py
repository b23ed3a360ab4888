"""Hostile and impossible metadata: a typed error that says what is wrong, never anything else."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import EdgerunError, FormatError, UnsupportedError
from edgerun.formats.gguf import GgmlType, GgufWriter, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.models.rope import RopeTable, frequencies
from edgerun.models.spec import RopeScaling
from edgerun.weights import ResidentStore
from tests.models.instances import INSTANCES, write


def with_metadata(tmp_path, name="llama", **changes):
    base = INSTANCES[name]
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return write(dataclasses.replace(base, lies=keys), tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("block_count", 0, "block_count is 0"),
        ("block_count", 10**6, "block_count is 1000000"),
        ("block_count", 4, "blk.3.attn_norm.weight .* is missing"),
        ("embedding_length", "many", "must be an integer"),
        ("embedding_length", 128, "metadata says"),
        ("attention__head_count", 3, "3 heads cannot share 2"),
        ("attention__head_count_kv", 8, "cannot share"),
        ("rope__dimension_count", 17, "cannot rotate 17"),
        ("rope__dimension_count", 64, "cannot rotate 64 of 16"),
        ("rope__freq_base", float("nan"), "is nan"),
        ("rope__freq_base", 0.5, "impossible"),
        ("attention__layer_norm_rms_epsilon", -1.0, "impossible"),
        ("rope__scaling__type", "spiral", "'spiral' is not supported"),
        ("rope__scaling__factor", 1e30, "impossible"),
        ("feed_forward_length", 97, "metadata says"),
        ("expert_count", 4, "cannot use 0 of 4"),
        ("block_count", ["3", "3"], "must be a number, got 2 strings"),
        ("attention__head_count", ["x"], "must be a number"),
        ("rope__freq_base", ["1e4"], "must be a number"),
        ("block_count", np.zeros(0, np.int32), "got an array of none"),
        ("attention__head_count_kv", np.array([2, 4, 2], np.int32), "blk.1.attn_k.weight is"),
        ("attention__head_count_kv", np.array([2, 2], np.int32), "has 2 numbers for 3 layers"),
        ("attention__head_count", np.array([4, 0, 4], np.int32), "has 0; expected 1 to 4096"),
        ("feed_forward_length", np.array([96.0, 96.0, 96.0], np.float32), "must be integers"),
        ("feed_forward_length", np.array([96, 1 << 23, 96], np.int32), "has 8388608"),
        ("rope__scaling__attn_factor", -2.0, "attention factor -2.0"),
        ("nextn_predict_layers", 3, "none is left"),
    ],
)
def test_impossible_numbers(tmp_path, key, value, text):
    with open_gguf(with_metadata(tmp_path, **{key: value})) as gguf, pytest.raises(FormatError, match=text):
        load_spec(gguf)


@pytest.mark.parametrize(("key", "value"), [("beta_fast", 0.0), ("beta_slow", -1.0)])
def test_impossible_betas(tmp_path, key, value):
    lies = {f"rope__scaling__yarn_{key}": value}
    with (
        open_gguf(with_metadata(tmp_path, "mistral3", **lies)) as gguf,
        pytest.raises(FormatError, match=f"yarn_{key}"),
    ):
        load_spec(gguf)


def test_a_mixture_beside_nothing(tmp_path):
    lies = {"feed_forward_length": 0}
    with open_gguf(with_metadata(tmp_path, "gemma4-moe", **lies)) as gguf, pytest.raises(FormatError, match="is 0 of"):
        load_spec(gguf)


_VALUES = st.one_of(
    st.integers(-(2**31), 2**31),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers(-5, 5), min_size=1, max_size=4),
)
_KEYS = st.sampled_from(
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "expert_count",
        "expert_used_count",
        "attn_logit_softcapping",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_KEYS, _VALUES, min_size=1, max_size=3))
def test_mutated_metadata_gives_a_spec_or_a_typed_error(tmp_path_factory, changes):
    base = INSTANCES["llama"]
    path = tmp_path_factory.mktemp("mutated") / "m.gguf"
    write(dataclasses.replace(base, lies=changes), path)
    with open_gguf(path) as gguf:
        try:
            spec = load_spec(gguf)
        except EdgerunError as error:
            assert str(error)
        else:
            assert spec.n_layers == base.layers


def test_a_block_count_below_the_layers_in_the_file_is_refused(tmp_path):
    write(dataclasses.replace(INSTANCES["llama"], lies={"block_count": 1}), tmp_path / "m.gguf")
    with open_gguf(tmp_path / "m.gguf") as gguf, pytest.raises(FormatError, match="block_count is 1.*layer 1"):
        load_spec(gguf)


@pytest.mark.parametrize(
    ("name", "key", "value", "text"),
    [
        ("qwen3vl", "rope.dimension_sections", np.array([-8, 16, 0, 0], np.int32), "no fewer than 0 pairs"),
        ("qwen3vl", "rope.dimension_sections", np.array([8], np.int32), "three or four integers"),
        ("gemma3n", "altup.num_inputs", 3, "altup_proj.weight is"),
        ("gemma3n", "altup.num_inputs", 1, "num_inputs is 1"),
        ("gemma3n", "embedding_length_per_layer_input", 0, "per_layer_input is 0"),
        ("gptoss", "attention.sliding_window", 0, "sliding_window is 0: layers"),
        ("gemma3n", "activation_sparsity_scale", np.full(25, np.nan, np.float32), "must be deviations"),
        ("gemma3n", "activation_sparsity_scale", np.full(5, 0.5, np.float32), "must be 25 numbers"),
    ],
)
def test_impossible_numbers_of_families(tmp_path, name, key, value, text):
    lying = dataclasses.replace(INSTANCES[name], lies={key: value})
    with open_gguf(write(lying, tmp_path / "m.gguf")) as gguf, pytest.raises(FormatError, match=text):
        load_spec(gguf)


def test_layers_that_compute_with_another_stream_are_refused(tmp_path):
    other = dataclasses.replace(INSTANCES["gemma3n"], lies={"altup.active_idx": 1})
    with open_gguf(write(other, tmp_path / "m.gguf")) as gguf, pytest.raises(UnsupportedError, match="another stream"):
        load_spec(gguf)


def test_a_baichuan_of_other_layers_is_refused(tmp_path):
    other = dataclasses.replace(INSTANCES["baichuan"], lies={"block_count": 40})  # of 13B, which is not rotated
    with open_gguf(write(other, tmp_path / "m.gguf")) as gguf, pytest.raises(UnsupportedError, match="32 layers"):
        load_spec(gguf)


@pytest.mark.parametrize(("name", "grows"), [("llama", False), ("hunyuanmoe", False), ("hunyuan", True)])
def test_only_one_family_knows_alpha(tmp_path, name, grows):
    """As llama.cpp does it; others may carry the key."""
    given = dataclasses.replace(INSTANCES[name], lies={"rope.scaling.alpha": 50.0})
    with open_gguf(write(given, tmp_path / "m.gguf")) as gguf:
        base = load_spec(gguf).layers[0].rotation.base
    assert (base > 500_000) == grows and (grows or base == 10000.0)


def test_a_mixture_without_experts_is_refused(tmp_path):
    """Its router reads each layer's input: there must be one."""
    dense = dataclasses.replace(INSTANCES["smallthinker"], lies={"expert_count": 0})
    with open_gguf(write(dense, tmp_path / "m.gguf")) as gguf, pytest.raises(FormatError, match="lacks .*expert_count"):
        load_spec(gguf)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_factors_of_the_rotation_must_be_positive_numbers(tmp_path, kernels, factor):
    path = write(INSTANCES["llama3-rope"], tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        offset = gguf.tensors["rope_freqs.weight"].offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(factor).tobytes())
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        with pytest.raises(FormatError, match="positive numbers"):
            Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)


def test_unknown_architecture_names_the_known(tmp_path):
    with GgufWriter(tmp_path / "x.gguf", "mamba9") as w:
        w.add("mamba9.block_count", 1)
    with open_gguf(tmp_path / "x.gguf") as gguf, pytest.raises(UnsupportedError, match="'mamba9'.*qwen3moe"):
        load_spec(gguf)


def test_yarn_by_hand():
    scaling = RopeScaling("yarn", factor=4.0, original_context=32)
    angles, factor = frequencies(16, 10000.0, scaling)
    assert factor == pytest.approx(1 + 0.1 * math.log(4))
    plain = [10000 ** (-2 * i / 16) for i in range(8)]
    assert angles[0] == pytest.approx(plain[0]), "fast dimensions stay"
    assert angles[-1] == pytest.approx(plain[-1] / 4), "slow ones are stretched"
    assert ((angles <= np.array(plain) + 1e-12) & (angles >= np.array(plain) / 4 - 1e-12)).all()


def test_linear_and_factors_divide():
    plain, one = frequencies(8, 100.0, RopeScaling())
    linear, _ = frequencies(8, 100.0, RopeScaling("linear", factor=2.0))
    divided, _ = frequencies(8, 100.0, RopeScaling(), np.full(4, 2, np.float32))
    np.testing.assert_allclose(linear, plain / 2)
    np.testing.assert_allclose(divided, plain / 2)
    assert one == 1.0


def test_table_grows_without_changing():
    table = RopeTable(*frequencies(8, 100.0, RopeScaling()))
    first = [part.copy() for part in table.at(3, 5)]
    table.at(5000, 1)
    for before, after in zip(first, table.at(3, 5), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize(
    ("architecture", "parts", "says"),
    [
        ("clip", ["v.blk.0.attn_q.weight"], "is a projector .mmproj."),
        (
            "rwkv9",
            ["blk.0.attn_q.weight", "blk.0.time_mix_w1.weight"],
            "'rwkv9' .'Strange'.*have not: time_mix_w1. .*llama",
        ),
        ("rwkv9", ["blk.0.attn_q.weight"], "is not supported. edgerun runs"),
    ],
)
def test_an_unknown_architecture_is_described(tmp_path, architecture, parts, says):
    with GgufWriter(tmp_path / "m.gguf", architecture) as w:
        w.add("general.name", "Strange")
        for part in parts:
            w.add_tensor(part, np.zeros((2, 32), np.float32), GgmlType.F32)
    with open_gguf(tmp_path / "m.gguf") as gguf, pytest.raises(UnsupportedError, match=says):
        load_spec(gguf)
