"""Streamed equals resident, byte for byte, whatever fits, whenever reads land, and after whatever went wrong."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.errors import Cancelled, ReadError, UsageError
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, neuron_cache
from edgerun.weights.eviction import DecayedFrequency, LeastRecentlyUsed
from edgerun.weights.streamed_layers import spread
from tests.models.instances import INSTANCES, SPARSE, tokens_of, write
from tests.weights.faulty_disk import failing_reads, healthy_reads, slow_reads

EXPERT_MODELS = [name for name, each in INSTANCES.items() if each.experts]
DENSE_MODELS = [name for name, each in INSTANCES.items() if not each.experts]
SPARSE_MODELS = [instance.name for instance in SPARSE]
PROMPT = 25  # tokens of a prompt; the rest one by one


@pytest.fixture(scope="module")
def models(tmp_path_factory, kernels):
    """name -> (open file, spec, what the resident model says to the tokens)."""
    folder, known = tmp_path_factory.mktemp("models"), {}

    def get(name):
        if name not in known:
            gguf = open_gguf(write(INSTANCES[name], folder / f"{name}.gguf"))
            spec = load_spec(gguf)
            known[name] = gguf, spec, run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), name)
        return known[name]

    yield get
    for gguf, _, _ in known.values():
        gguf.close()


def run(decoder, name):
    """Logits of the prompt and of every token after it."""
    tokens = tokens_of(INSTANCES[name])
    cache = decoder.new_cache(128)
    rows = [decoder.forward(tokens[:PROMPT], cache, logits="all")]
    rows += [decoder.forward([token], cache) for token in tokens[PROMPT:]]
    return np.concatenate(rows)


@contextmanager
def streamed(models, name, kernels, **options):
    """A decoder over a streaming store."""
    gguf, spec, expected = models(name)
    kind = StreamedExpertStore if INSTANCES[name].experts else StreamedLayerStore
    with closing(kind(gguf, spec, kernels, **options)) as store:
        yield Decoder(spec, store, kernels), store, expected


POLICIES = {
    "decayed": lambda spec: DecayedFrequency(spec.n_layers, spec.n_experts),
    "lru": lambda spec: LeastRecentlyUsed(spec.n_layers, spec.n_experts),
}


@pytest.mark.parametrize("name", EXPERT_MODELS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_experts(models, kernels, name, data):
    _, spec, _ = models(name)
    options = {
        "slots": data.draw(st.integers(2, spec.n_layers * spec.n_experts), "slots"),
        "wave_tokens": data.draw(st.sampled_from([2, 7, 256]), "wave"),
        "predict": data.draw(st.booleans(), "predict"),
        "reader_threads": data.draw(st.integers(1, 4), "threads"),
        "direct": data.draw(st.booleans(), "direct"),
        "eviction": POLICIES[data.draw(st.sampled_from(list(POLICIES)), "policy")](spec),
    }
    with pytest.MonkeyPatch.context() as patch:
        slow_reads(patch, data.draw(st.integers(0, 999), "delays"))
        with streamed(models, name, kernels, **options) as (decoder, store, expected):
            assert np.array_equal(run(decoder, name), expected)
            stats = store.statistics()
            assert stats["hits"] + stats["late"] + stats["misses"] > 0
            assert np.array_equal(run(decoder, name), expected), "and again with what is cached"


@pytest.mark.parametrize("name", DENSE_MODELS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_layers(models, kernels, name, data):
    _, spec, _ = models(name)
    pinned = data.draw(st.lists(st.integers(0, spec.n_layers - 1), unique=True), "pinned")
    buffers, wave = data.draw(st.integers(2, 4), "buffers"), data.draw(st.sampled_from([2, 7, 256]), "wave")
    with pytest.MonkeyPatch.context() as patch:
        slow_reads(patch, data.draw(st.integers(0, 999), "delays"))
        options = {"pinned": pinned, "buffers": buffers, "wave_tokens": wave}
        if name in SPARSE_MODELS:
            options["neuron_slots"] = data.draw(st.integers(5, 96), "slots")
        with streamed(models, name, kernels, **options) as (decoder, store, expected):
            assert np.array_equal(run(decoder, name), expected)
            if name in SPARSE_MODELS:
                stats = store.statistics()
                assert stats["neuron_hits"] + stats["neuron_misses"] > 0
                assert np.array_equal(run(decoder, name), expected), "and again with what is cached"


def tight(name):
    """Options of a store with little room."""
    if INSTANCES[name].experts:
        return {"slots": 6, "predict": False}
    return {"pinned": [], "neuron_slots": 20 if name in SPARSE_MODELS else 0}


@pytest.mark.parametrize("name", ["olmoe", "qwen2moe", "llama", "llama-Q4_0", "relu2-Q4_0"])
def test_cancelled_prompts_leave_no_trace(models, kernels, name):
    options = tight(name) | ({"predict": True} if INSTANCES[name].experts else {"pinned": [1]})
    with streamed(models, name, kernels, wave_tokens=256, **options) as (decoder, _, expected):
        tokens = tokens_of(INSTANCES[name])
        for after in range(0, 12, 3):
            cache, calls = decoder.new_cache(128), 0

            def cancelled(after=after):
                nonlocal calls
                calls += 1
                return calls > after

            try:
                decoder.forward(tokens[:PROMPT], cache, cancelled=cancelled)
            except Cancelled:
                assert cache.length == 0
        assert np.array_equal(run(decoder, name), expected)


@pytest.mark.parametrize("name", ["olmoe", "llama", "relu-Q8_0"])
def test_a_dying_disk_is_an_error_that_names_the_tensor_and_may_pass(models, kernels, name, monkeypatch):
    gguf, _, _ = models(name)
    part = "ffn_down_exps" if INSTANCES[name].experts else "ffn_down_t" if name in SPARSE_MODELS else "ffn_down"
    info = gguf.tensors[f"blk.1.{part}.weight"]
    with streamed(models, name, kernels, wave_tokens=256, direct=False, **tight(name)) as (decoder, _, expected):
        run(decoder, name)  # what is cached now does not fail
        failing_reads(monkeypatch, lambda offset: info.offset - 4096 < offset < info.offset + info.n_bytes)
        with pytest.raises(ReadError, match=r"blk\.\d\.\w+.weight cannot be read: Input/output error"):
            for _ in range(20):
                run(decoder, name)
        healthy_reads(monkeypatch)
        assert np.array_equal(run(decoder, name), expected)


@pytest.mark.parametrize("name", ["olmoe", "llama", "relu"])
@pytest.mark.parametrize("how", ["cut", "touched"])
def test_a_file_changed_while_in_use(tmp_path, kernels, name, how):
    path = write(INSTANCES[name], tmp_path / "m.gguf")
    kind = StreamedExpertStore if INSTANCES[name].experts else StreamedLayerStore
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        with closing(kind(gguf, spec, kernels, wave_tokens=256, **tight(name))) as store:
            decoder = Decoder(spec, store, kernels)
            run(decoder, name)
            if how == "cut":
                os.truncate(path, path.stat().st_size // 2)
            else:
                os.utime(path, ns=(0, 0))
            with pytest.raises(ReadError, match="changed while in use"):
                run(decoder, name)


def test_a_truncated_file_is_refused_when_it_is_read(tmp_path, kernels):
    path = write(INSTANCES["llama"], tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        os.truncate(path, gguf.tensors["blk.2.ffn_down.weight"].offset + 100)
        with pytest.raises(ReadError, match="the file ends within"):
            StreamedLayerStore(gguf, spec, kernels, pinned=[0, 1, 2], wave_tokens=256)


def test_closing_in_the_middle_of_a_layer(models, kernels):
    with streamed(models, "olmoe", kernels, slots=6, wave_tokens=256) as (_, store, _):
        batches = store.experts(0, np.arange(8, dtype=np.int32))
        next(batches)
        store.expect(1, np.arange(8, dtype=np.int32))
    with pytest.raises(ReadError, match="closed"):
        list(store.experts(2, np.arange(8, dtype=np.int32)))


def test_an_abandoned_layer_gives_its_slots_back(models, kernels):
    with streamed(models, "olmoe", kernels, slots=5, wave_tokens=256) as (decoder, store, expected):
        for layer in (0, 1, 2):
            batches = store.experts(layer, np.arange(8, dtype=np.int32))
            next(batches)
            batches.close()
        assert np.array_equal(run(decoder, "olmoe"), expected)


def test_a_start_with_known_scores_begins_warm(models, kernels):
    with streamed(models, "olmoe", kernels, slots=12, wave_tokens=256) as (decoder, store, _):
        run(decoder, "olmoe")
        scores = store.scores.copy()
    with streamed(models, "olmoe", kernels, slots=12, wave_tokens=256, scores=scores) as (decoder, store, expected):
        hottest = {divmod(int(key), 8) for key in np.argsort(-scores.reshape(-1), kind="stable")[:12]}
        while len(store.cache.resident()) < 12:
            pass
        assert set(store.cache.resident()) == hottest
        assert np.array_equal(run(decoder, "olmoe"), expected)


def test_hints_begin_reads_that_are_then_hits(models, kernels):
    with streamed(models, "olmoe", kernels, slots=24, wave_tokens=256) as (_, store, _):
        store.expect(1, np.array([2, 5], np.int32))
        while len(store.cache.resident()) < 2:
            pass
        assert [[each.id for each in batch] for batch in store.experts(1, np.array([2, 5], np.int32))] == [[2, 5]]
        stats = store.statistics()
        assert (stats["hits"], stats["misses"], stats["predicted"], stats["predicted_used"]) == (2, 0, 2, 2)


def test_hints_that_are_always_wrong_are_no_longer_followed(models, kernels):
    with streamed(models, "olmoe", kernels, slots=8, wave_tokens=256) as (_, store, _):
        for turn in range(200):
            store.expect(1, np.array([turn % 4, 4 + turn % 3], np.int32))
            list(store.experts(1, np.array([7], np.int32)))
        stats = store.statistics()
        assert 4 < stats["predicted"] < 60
        assert stats["predicted_used"] == 0
        before = stats["predicted"]
        for turn in range(200):  # another layer's hints are right
            wanted = np.array([turn % 8], np.int32)
            store.expect(2, wanted)
            list(store.experts(2, wanted))
        assert store.statistics()["predicted"] > before


def test_neurons_that_fire_often_stay(models, kernels):
    """Read once, kept, and known to the next start."""
    gguf, spec, _ = models("relu-F16")
    options = {"pinned": [], "wave_tokens": 256, "neuron_slots": 75}
    with streamed(models, "relu-F16", kernels, **options) as (decoder, store, expected):
        run(decoder, "relu-F16")
        first = store.statistics()
        run(decoder, "relu-F16")
        second = store.statistics()
        assert second["neuron_misses"] - first["neuron_misses"] < first["neuron_misses"]
        scores = store.scores.copy()
    with streamed(models, "relu-F16", kernels, scores=scores, **options) as (decoder, store, expected):
        before = store.statistics()["read_n_bytes"]
        assert np.array_equal(run(decoder, "relu-F16"), expected)
        assert store.statistics()["neuron_misses"] < first["neuron_misses"]
        assert before > 0


def test_closing_in_the_middle_of_a_sparse_layer(models, kernels, monkeypatch):
    slow_reads(monkeypatch, 3, most_s=0.01)
    with streamed(models, "relu", kernels, pinned=[], wave_tokens=256, neuron_slots=32) as (decoder, store, expected):
        batches = store.neurons(1, np.arange(32, dtype=np.int32))
        next(batches)
        batches.close()
        assert np.array_equal(run(decoder, "relu"), expected)


def test_an_interrupt_while_neurons_are_read(models, kernels, monkeypatch):
    """What was not waited for is not taken for there."""
    with streamed(models, "relu-Q8_0", kernels, pinned=[], wave_tokens=256, neuron_slots=96) as (decoder, _, expected):
        real = neuron_cache._Reading.take
        turns = iter(range(1000))

        def interrupted(reading):
            if next(turns) == 2:
                raise KeyboardInterrupt
            return real(reading)

        with monkeypatch.context() as patch:
            patch.setattr(neuron_cache._Reading, "take", interrupted)
            slow_reads(patch, 3, most_s=0.02)
            with pytest.raises(KeyboardInterrupt):
                run(decoder, "relu-Q8_0")
        assert np.array_equal(run(decoder, "relu-Q8_0"), expected)


def test_which_layers_stay():
    assert spread(8, 0) == []
    assert spread(8, 8) == list(range(8))
    for pinned in range(9):
        assert len(spread(8, pinned)) == pinned
    assert spread(8, 4) == [1, 3, 5, 7]


def test_the_wrong_way_to_stream(models, kernels):
    gguf, spec, _ = models("olmoe")
    with pytest.raises(UsageError, match="by its experts"):
        StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=256)
    gguf, spec, _ = models("llama")
    with pytest.raises(UsageError, match="two buffers"):
        StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=256, buffers=1)


def test_lent_memory_is_free_meanwhile_and_used_again(models, kernels):
    with streamed(models, "olmoe", kernels, slots=20, wave_tokens=256) as (decoder, store, expected):
        run(decoder, "olmoe")
        store.expect(2, np.arange(8, dtype=np.int32))
        with store.lend(12 * store.cache.slot_bytes - 5):
            assert len(store.cache.resident()) <= 8
            assert np.array_equal(run(decoder, "olmoe"), expected), "with the few that are left"
            with store.lend(100 * store.cache.slot_bytes):
                assert len(store.cache.resident()) <= 2, "all but two"
        assert np.array_equal(run(decoder, "olmoe"), expected)
        assert len(store.cache.resident()) > 8
