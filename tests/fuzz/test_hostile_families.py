"""Headers of the recent families with numbers and tensors as an attacker would write them: a spec, or an error that
says what is wrong. (`test_fuzz.py` damages bytes; this changes what they mean.)"""

from __future__ import annotations

import dataclasses
import warnings
from random import Random

import numpy as np
import pytest

from edgerun.errors import EdgerunError, FormatError
from edgerun.formats.gguf import open_gguf
from edgerun.models import load_spec
from tests.models.instances import INSTANCES, metadata_of, write

NAMES = [
    *("qwen35", "qwen35moe", "gemma4-fed", "gemma4-moe", "gptoss", "lfm2moe", "nemotron_h_moe-latent", "mistral3"),
    *("qwen3vlmoe", "muse", "deepseek2-groups", "gemma3n", "llama4", "falcon-h1", "laguna-small-Q8_0", "exaonemoe"),
]
KEYS = (  # beside those that the files have
    *("attention.sliding_window", "attention.sliding_window_pattern", "attention.recurrent_layers", "expert_count"),
    *(
        "full_attention_interval",
        "expert_group_count",
        "expert_group_used_count",
        "expert_gating_func",
        "expert_used_count",
    ),
    *("attention.shared_kv_layers", "nextn_predict_layers", "leading_dense_block_count", "interleave_moe_layer_step"),
    *("expert_shared_count", "moe_latent_size", "rope.dimension_count_swa", "attention.key_length_swa"),
    *("rope.dimension_sections", "attention.temperature_scale", "attention.temperature_length", "altup.num_inputs"),
    *("altup.active_idx", "activation_sparsity_scale", "embedding_length_per_layer_input", "rope.scaling.type"),
    *("rope.scaling.alpha", "rope.scaling.factor", "rope.scaling.original_context_length", "attention.rope_pattern"),
    *("expert_weights_norm", "expert_weights_scale", "logit_scale", "final_logit_softcapping", "embedding_scale"),
)
VALUES = (
    *(0, 1, -1, 3, 2**31 - 1, 2**40, 1e30, 0.0, -1.0, float("nan"), float("inf"), True, "x", ["a", "b"]),
    *(np.zeros(0, np.int32), np.array([1], np.int32), np.zeros(64, np.int32), np.full(64, -1, np.int32)),
    *(np.full(64, 2**31 - 1, np.int32), np.ones(64, bool), np.zeros(64, bool), np.full(64, np.nan, np.float32)),
    *(np.full(64, 1.5, np.float32), np.full(64, 2**63, np.uint64), np.arange(64, dtype=np.int32)),
)
SOME = 6  # of these for a key


@pytest.fixture(scope="module", params=NAMES)
def gguf(request, tmp_path_factory):
    path = write(INSTANCES[request.param], tmp_path_factory.mktemp("hostile") / "m.gguf")
    with open_gguf(path) as gguf:
        gguf.metadata = dict(gguf.metadata)
        yield gguf


def test_no_number_does_harm(gguf, request):
    """Each key with some of the values, others for every family."""
    name, whole = gguf.architecture, gguf.metadata
    keys = {*KEYS, *metadata_of(INSTANCES[request.node.callspec.params["gguf"]])}
    rng = Random(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for key in sorted(keys):
                for value in rng.sample(VALUES, SOME):
                    gguf.metadata = {**whole, f"{name}.{key}": value}
                    try:
                        load_spec(gguf)
                    except EdgerunError as error:
                        assert str(error)
                    except Exception as error:
                        raise AssertionError(f"{key} = {value!r}") from error
    finally:
        gguf.metadata = whole


def test_every_tensor_is_missed_and_measured(gguf):
    """Without any one, and with one row more, the file is refused or a spec all the same: what may be lacking is."""
    whole = gguf.tensors
    spec, first = load_spec(gguf), [name for name in whole if not name.startswith("blk.")]
    try:
        for name in [*first, *(name for name in whole if name.startswith("blk.1."))]:
            if name not in spec.tensors or name == "token_embd.weight":  # whose rows say how many tokens there are
                continue
            shape = whole[name].shape
            for other in ((shape[0] + 1, *shape[1:]), (*shape, 2), shape[:-1] + (2**40,), (0, *shape[1:])):
                gguf.tensors = {**whole, name: dataclasses.replace(whole[name], shape=other)}
                with pytest.raises(EdgerunError):
                    load_spec(gguf)
            gguf.tensors = {each: info for each, info in whole.items() if each != name}
            try:
                found = load_spec(gguf)
            except EdgerunError as error:
                assert str(error)
            else:
                assert name not in found.tensors
    finally:
        gguf.tensors = whole


def test_arrays_of_the_wrong_length_are_refused(gguf):
    whole, layers = gguf.metadata, load_spec(gguf).n_layers
    try:
        for key in ("feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count"):
            gguf.metadata = {**whole, f"{gguf.architecture}.{key}": np.ones(layers - 1, np.int32)}
            with pytest.raises(EdgerunError):
                load_spec(gguf)
        gguf.metadata = {**whole, f"{gguf.architecture}.expert_used_count": 5000}
        with pytest.raises(FormatError, match="5000"):
            load_spec(gguf)
    finally:
        gguf.metadata = whole
