"""What is found out about a model while it is streamed is what is found out when it is resident."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.api.prefill import kept_calibration, prefill_dir
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.models.prompt import on_backend
from edgerun.prefill.calibrate import Calibration, calibration_path, save_calibration
from edgerun.prefill.observe import KernelLayers
from edgerun.prefill.profile import profile_ranges
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from edgerun.weights.eviction import DecayedFrequency
from edgerun.weights.identity import content_digest
from tests.models.instances import INSTANCES, write
from tests.prefill.making import tokens

NAMES = ["llama", "phi3", "gemma2", "olmoe", "qwen2moe", "smallthinker"]


@pytest.fixture
def opened(tmp_path, kernels):
    """name -> (file, spec)."""
    files = []

    def get(name):
        files.append(open_gguf(write(INSTANCES[name], tmp_path / f"{name}.gguf")))
        return files[-1], load_spec(files[-1])

    yield get
    for file in files:
        file.close()


def streaming(gguf, spec, kernels):
    if spec.n_experts:
        return StreamedExpertStore(gguf, spec, kernels, slots=2 * spec.n_experts_used, wave_tokens=256)
    return StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=256)


@pytest.mark.parametrize("name", NAMES)
def test_ranges_are_the_same_bits(opened, kernels, name):
    gguf, spec = opened(name)
    ids, experts = tokens(120), bool(spec.n_experts)
    wanted = profile_ranges(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), ids, experts=experts)
    with closing(streaming(gguf, spec, kernels)) as store:
        found = profile_ranges(Decoder(spec, store, kernels), ids, experts=experts)
    assert found == wanted


@pytest.mark.parametrize("tokens_in_wave", [256, 40])
def test_a_pass_reads_each_weight_once_a_wave(opened, kernels, tokens_in_wave):
    gguf, spec = opened("llama")
    layers = range(spec.n_layers)
    once = sum(gguf.tensors[f"blk.{i}.{part}.weight"].n_bytes for i in layers for part in ("ffn_up", "ffn_down"))
    once += sum(gguf.tensors[f"blk.{i}.{part}.weight"].n_bytes for i in layers for part in ("ffn_gate", "attn_output"))
    once += sum(gguf.tensors[f"blk.{i}.attn_{part}.weight"].n_bytes for i in layers for part in "qkv")
    with closing(StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=tokens_in_wave)) as store:
        before, waves = store.flash.stats.n_bytes, 120 // tokens_in_wave or 1
        profile_ranges(Decoder(spec, store, kernels), tokens(120))
        assert store.stats.restarts == 0
        assert store.stats.ready + store.stats.waited == waves * spec.n_layers
        window = 2 * max(once // spec.n_layers, 1)  # what was read ahead for the next pass
        assert store.flash.stats.n_bytes - before <= waves * once + window


def test_a_watched_prompt_leaves_the_same_cache(opened, kernels):
    gguf, spec = opened("llama")
    with closing(streaming(gguf, spec, kernels)) as store:
        decoder = Decoder(spec, store, kernels)
        logits = []
        for backend in (None, KernelLayers(lambda layer, product, inner, results: None)):
            with on_backend(decoder, backend):
                cache = decoder.new_cache(64)
                decoder.forward(tokens(30), cache)
                logits.append(decoder.forward([3], cache))
        assert np.array_equal(*logits)


def test_watching_ages_the_hot_set_as_the_same_prompt_does(opened, kernels):
    """By as many tokens, with as many uses of each expert."""
    gguf, spec = opened("olmoe")
    scores = []
    for experts in (False, True):
        policy = DecayedFrequency(spec.n_layers, spec.n_experts)
        store = StreamedExpertStore(gguf, spec, kernels, slots=8, wave_tokens=256, eviction=policy)
        with closing(store):
            decoder = Decoder(spec, store, kernels)
            with on_backend(decoder, KernelLayers(lambda *seen: None, experts=True) if experts else None):
                decoder.forward(tokens(40), decoder.new_cache(64))
        scores.append(policy.scores)
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_a_calibration_holds_where_the_weights_were(opened, kernels):
    gguf, _ = opened("llama")
    for mode in ("resident", "layers"):
        found = Calibration({"memory": mode}, (), "kernels", mode, 0)
        digest = content_digest(gguf, prefill_dir())
        save_calibration(calibration_path(prefill_dir(), digest, mode), found)
    assert kept_calibration(gguf, "experts") is None
    assert [kept_calibration(gguf, mode).why for mode in ("resident", "layers")] == ["resident", "layers"]
