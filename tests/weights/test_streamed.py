"""Streamed equals resident, byte for byte, whatever fits and whenever reads land."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerun.errors import UsageError
from edgerun.models import passes as passes_module
from edgerun.weights import StreamedLayerStore
from edgerun.weights.eviction import DecayedFrequency, LeastRecentlyUsed
from edgerun.weights.streamed_layers import spread
from tests.models.instances import INSTANCES, PLAIN, QUANTISED, tokens_of
from tests.weights.faulty_disk import slow_reads
from tests.weights.streaming import SPARSE_MODELS, check_whole, patience, run, streamed

# Of the families that came later one instance each: how a layer is computed is tested elsewhere, here how it comes.
_FIRST = {each.arch: name for name, each in reversed(INSTANCES.items())}
_TESTED = {*_FIRST.values(), *(each.name for each in (*PLAIN, *QUANTISED))}
EXPERT_MODELS = [name for name, each in INSTANCES.items() if each.experts and name in _TESTED]
DENSE_MODELS = [name for name, each in INSTANCES.items() if not each.experts and name in _TESTED]


POLICIES = {
    "decayed": lambda spec: DecayedFrequency(spec.n_layers, spec.n_experts),
    "lru": lambda spec: LeastRecentlyUsed(spec.n_layers, spec.n_experts),
}


@pytest.mark.parametrize("name", EXPERT_MODELS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_experts(models, kernels, name, data):
    _, spec, _ = models(name)
    options = {
        "slots": data.draw(st.integers(2, spec.n_layers * spec.n_experts), "slots"),
        "wave_tokens": data.draw(st.sampled_from([2, 7, 256]), "wave"),
        "predict": data.draw(st.booleans(), "predict"),
        "reader_threads": data.draw(st.integers(1, 4), "threads"),
        "direct": data.draw(st.booleans(), "direct"),
        "spare_bytes": data.draw(st.sampled_from([0, 1 << 17, 1 << 20]), "spare"),
        "eviction": POLICIES[data.draw(st.sampled_from(list(POLICIES)), "policy")](spec),
    }
    with pytest.MonkeyPatch.context() as patch:
        slow_reads(patch, data.draw(st.integers(0, 999), "delays"))
        with streamed(models, name, kernels, **options) as (decoder, store, expected):
            assert np.array_equal(run(decoder, name), expected)
            stats = store.statistics()
            assert stats["hits"] + stats["late"] + stats["misses"] > 0
            store.others_hold(data.draw(st.integers(0, 1 << 20), "held"))
            assert np.array_equal(run(decoder, name), expected), "and again with what is cached"


@pytest.mark.parametrize(
    ("name", "slots"), [("olmoe-Q8_0", 0), ("olmoe-Q8_0", 6), ("gemma4-moe", 0), ("nemotron_h_moe-latent", 0)]
)
def test_python_computes_only_the_experts_of_layers_where_one_is_missing(models, kernels, monkeypatch, name, slots):
    """slots: how many are lacking. The first sums them as they are, the others do something with the sum before."""
    if kernels.recording is None:
        pytest.skip("nothing is recorded")
    _, spec, _ = models(name)
    tokens, every = tokens_of(INSTANCES[name]), spec.n_layers * spec.n_experts

    def decode():
        cache = decoder.new_cache(128)
        return [decoder.forward([token], cache).tolist() for token in tokens]

    with streamed(models, name, kernels, slots=every - slots, wave_tokens=256) as (decoder, store, _):
        asked, experts, told = [], store.experts, []
        monkeypatch.setattr(store, "experts", lambda layer, *more: (asked.append(layer), experts(layer, *more))[1])
        decoder.on_routing = lambda layer, ids: told.append((layer, ids.tolist()))
        before, uses, first = decode(), store.cache.stats.uses, list(told)
        asked.clear()
        told.clear()
        assert decode() == before
        assert sorted(told) == sorted(first), "whoever wants to know is told of all choices"
        assert store.cache.stats.uses == 2 * uses, "and all are counted"
        assert not asked if not slots else 0 < len(asked) < len(told)
        check_whole(store)


@pytest.mark.parametrize("name", DENSE_MODELS)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_what_was_given_back_or_is_in_use_is_refused(models, kernels):
    """Instead of another layer's weights under its name."""
    with streamed(models, "llama", kernels, pinned=[], wave_tokens=256) as (_, store, _):
        with store.layer(1) as kept:
            assert kept.matrices["attn_q"].rows
            with store.layer(1) as again:
                assert again.matrices["attn_q"] is kept.matrices["attn_q"]
            assert kept.matrices["attn_q"].rows, "the inner block was not the last"
            with pytest.raises(UsageError, match="layer 1 is in use"), store.layer(2):
                pass
        with pytest.raises(UsageError, match="attn_q of layer 1 was asked for after"):
            kept.matrices["attn_q"]
        assert np.array_equal(kept.vectors["attn_norm"], store.vectors(1)["attn_norm"])
    with streamed(models, "olmoe", kernels, slots=5, wave_tokens=256) as (_, store, _):
        with store.experts(1, np.arange(8, dtype=np.int32)) as batches:
            next(batches)
            with pytest.raises(UsageError, match="experts of layer 1 are in use"), store.experts(2, np.arange(2)):
                pass
        with pytest.raises(UsageError, match="given back"):
            next(batches)
    with streamed(models, "relu", kernels, pinned=[], wave_tokens=256, neuron_slots=20) as (_, store, _):
        with store.neurons(1, np.arange(32, dtype=np.int32)) as neurons:
            next(neurons)
            with pytest.raises(UsageError, match="in use"), store.neurons(2, np.arange(3, dtype=np.int32)):
                pass
        with pytest.raises(UsageError, match="given back"):
            next(neurons)


@pytest.mark.parametrize("ids", [[3, 3], [8], [-1, 2]])
def test_experts_that_no_router_could_choose(models, kernels, ids):
    with (
        streamed(models, "olmoe", kernels, slots=5, wave_tokens=256) as (_, store, _),
        pytest.raises(UsageError, match="different numbers from 0 to 7"),
        store.experts(1, np.array(ids, np.int32)),
    ):
        pass


def test_expectations_give_way_when_all_slots_are_expected(models, kernels):
    """Two slots are left of six, and both hold what another layer is going to want."""
    with streamed(models, "olmoe", kernels, slots=6, wave_tokens=256) as (_, store, _):
        with store.lend(4 * store.cache.slot_bytes):
            for layer in (1, 2):
                store.expect(layer, np.array([0, 1], np.int32))
            with store.experts(0, np.array([4, 5], np.int32), cancelled=patience(100)) as batches:
                assert sorted(each.id for batch in batches for each in batch) == [4, 5]
        check_whole(store)


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
        with store.experts(1, np.array([2, 5], np.int32)) as batches:
            assert [[each.id for each in batch] for batch in batches] == [[2, 5]]
        stats = store.statistics()
        assert (stats["hits"], stats["misses"], stats["predicted"], stats["predicted_used"]) == (2, 0, 2, 2)


def test_who_waits_is_woken_for_whole_experts(models, kernels, monkeypatch):
    """Not for each of their matrices, nor for what other layers will need: waking takes the processor from reading."""
    with streamed(models, "olmoe", kernels, slots=8, wave_tokens=256, predict=False) as (_, store, _):
        wait, waits, experts = store.flash.wait, 0, 3

        def counted(*arguments):
            nonlocal waits
            waits += 1
            return wait(*arguments)

        monkeypatch.setattr(store.flash, "wait", counted)
        slow_reads(monkeypatch, 1, 0.05)
        with store.experts(1, np.arange(experts, dtype=np.int32)) as batches:
            assert sorted(each.id for batch in batches for each in batch) == list(range(experts))
        assert 1 <= waits <= experts


def test_hints_that_are_always_wrong_are_no_longer_followed(models, kernels):
    with streamed(models, "olmoe", kernels, slots=8, wave_tokens=256) as (_, store, _):
        for turn in range(200):
            store.expect(1, np.array([turn % 4, 4 + turn % 3], np.int32))
            use(store, 1, [7])
        stats = store.statistics()
        assert 4 < stats["predicted"] < 60
        assert stats["predicted_used"] == 0
        before = stats["predicted"]
        for turn in range(200):  # another layer's hints are right
            store.expect(2, np.array([turn % 8], np.int32))
            use(store, 2, [turn % 8])
        assert store.statistics()["predicted"] > before


def use(store, layer, ids):
    with store.experts(layer, np.array(ids, np.int32)) as batches:
        list(batches)


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


def test_memory_that_others_do_not_hold_yet_keeps_experts(models, kernels):
    name, more = "olmoe-Q8_0", 5
    _, spec, _ = models(name)
    with streamed(models, name, kernels, slots=8, wave_tokens=256) as (_, store, _):
        slot_bytes = store.cache.slot_bytes
    with streamed(models, name, kernels, slots=8, wave_tokens=256, spare_bytes=more * slot_bytes) as (
        decoder,
        store,
        expected,
    ):
        for held, slots in [(0, 13), (1, 12), (more * slot_bytes, 8), (2 * slot_bytes, 11), (99 * slot_bytes, 8)]:
            store.others_hold(held)
            assert store.cache.slots == slots
            assert np.array_equal(run(decoder, name), expected)
            assert len(store.cache.resident()) <= slots
            check_whole(store)
        store.cache._torn = True  # whoever was interrupted leaves it to the next one
        store.cache.fill([])
        assert store.cache.slots == 8, "what is others' stays theirs"
        arena = store.cache._held._arena.bytes[: 13 * slot_bytes].reshape(13, slot_bytes)
        assert np.count_nonzero(arena.any(axis=1)) <= 8, "and its memory is the system's"


def test_lent_memory_is_free_meanwhile_and_used_again(models, kernels, monkeypatch):
    with streamed(models, "olmoe", kernels, slots=20, wave_tokens=256) as (decoder, store, expected):
        run(decoder, "olmoe")
        store.expect(2, np.arange(8, dtype=np.int32))
        with store.lend(12 * store.cache.slot_bytes - 5):
            assert len(store.cache.resident()) <= 8
            with store.lend(100 * store.cache.slot_bytes):
                assert len(store.cache.resident()) <= 2, "all but two"
        for lent in (12 * store.cache.slot_bytes - 5, 100 * store.cache.slot_bytes):
            monkeypatch.setattr(passes_module, "activation_bytes", lambda spec, rows, lent=lent: lent)
            assert np.array_equal(run(decoder, "olmoe"), expected), "with the few that are left"
        assert len(store.cache.resident()) > 8
        check_whole(store)
