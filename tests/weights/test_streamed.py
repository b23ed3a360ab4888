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
from edgerun.models import decoder as decoder_module
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, flash
from edgerun.weights.eviction import DecayedFrequency, LeastRecentlyUsed
from edgerun.weights.streamed_layers import spread
from tests.models.instances import INSTANCES, SPARSE, tokens_of, write
from tests.weights.faulty_disk import failing_reads, healthy_reads, slow_reads, stuck_reads

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
        polls = 0

        def count():
            nonlocal polls
            polls += 1
            return False

        decoder.forward(tokens[:PROMPT], decoder.new_cache(128), cancelled=count)
        assert polls >= decoder.spec.n_layers
        for after in range(polls):
            cache, answers = decoder.new_cache(128), iter([False] * after + [True])
            try:
                decoder.forward(tokens[:PROMPT], cache, cancelled=lambda answers=answers: next(answers))
            except Cancelled:
                assert cache.length == 0
            else:  # experts that come together are asked for together: there may be a few looks less
                assert next(answers) is not None
                assert after >= decoder.spec.n_layers
        assert np.array_equal(run(decoder, name), expected)


@pytest.mark.parametrize("name", ["olmoe", "smallthinker", "llama", "relu2-Q4_0"])
def test_a_token_is_cancelled_between_its_layers(models, kernels, name):
    """Recorded, replayed, and computed anew for each token."""
    with streamed(models, name, kernels, wave_tokens=256, **tight(name)) as (decoder, store, expected):
        tokens = tokens_of(INSTANCES[name])
        cache = decoder.new_cache(128)
        rows = [decoder.forward(tokens[:PROMPT], cache, logits="all")]
        for token in tokens[PROMPT:]:
            for after in range(decoder.spec.n_layers):
                answers, length = iter([False] * after + [True]), cache.length
                with pytest.raises(Cancelled):
                    decoder.forward([token], cache, cancelled=lambda answers=answers: next(answers))
                assert cache.length == length
            rows.append(decoder.forward([token], cache))
        assert np.array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("name", ["olmoe", "llama", "relu2-Q4_0"])
def test_waiting_for_a_disk_that_does_not_answer_is_cancelled(models, kernels, name, monkeypatch):
    """No read ends before the call has been cancelled."""
    with streamed(models, name, kernels, wave_tokens=256, direct=False, **tight(name)) as (decoder, store, expected):
        answers = iter([False] * 3 + [True])
        go = stuck_reads(monkeypatch)
        store.begin()
        with pytest.raises(Cancelled), borrow(store, name, lambda: next(answers)) as lent:
            next(lent).rest()
        go.set()
        assert np.array_equal(run(decoder, name), expected)


@contextmanager
def borrow(store, name, cancelled):
    """Whatever is streamed, of a layer that is not there yet."""
    if INSTANCES[name].experts:
        with store.experts(1, np.array([1, 2], np.int32), cancelled=cancelled) as batches:
            yield batches
    elif name in SPARSE_MODELS:
        with store.neurons(1, np.arange(15, dtype=np.int32), cancelled=cancelled) as batches:
            yield batches
    else:
        with store.layer(2, cancelled) as weights:
            yield iter([weights])


@pytest.mark.parametrize("name", ["olmoe", "llama", "relu-Q8_0"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("ask", ["run", "by_tokens"])
def test_a_dying_disk_is_an_error_that_names_the_tensor_and_may_pass(models, kernels, name, warm, ask, monkeypatch):
    ask = {"run": run, "by_tokens": by_tokens}[ask]
    gguf, _, _ = models(name)
    part = "ffn_down_exps" if INSTANCES[name].experts else "ffn_down_t" if name in SPARSE_MODELS else "ffn_down"
    info = gguf.tensors[f"blk.1.{part}.weight"]
    with streamed(models, name, kernels, wave_tokens=256, direct=False, **tight(name)) as (decoder, store, expected):
        if warm:
            run(decoder, name)  # what is cached now does not fail
        failing_reads(monkeypatch, lambda offset: info.offset - 4096 < offset < info.offset + info.n_bytes)
        for _ in range(2):  # a second failure after the first
            with pytest.raises(ReadError, match=r"blk\.\d\.\w+.weight cannot be read: Input/output error"):
                for _ in range(20):
                    ask(decoder, name)
        healthy_reads(monkeypatch)
        assert np.array_equal(run(decoder, name), expected)
        check_whole(store)


def by_tokens(decoder, name):
    """Nothing but single tokens: the first of them is the one that is recorded."""
    cache = decoder.new_cache(128)
    return np.concatenate([decoder.forward([token], cache) for token in tokens_of(INSTANCES[name])[:8]])


def check_whole(store):
    """Nothing is lost, leased or stuck, and nobody who reads has gone."""
    assert all(thread.is_alive() for thread in store.flash._threads)
    if isinstance(store, StreamedExpertStore):
        store.begin()
        store.cache.check()


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
        lease = store.experts(0, np.arange(8, dtype=np.int32))
        next(lease.__enter__())
        store.expect(1, np.arange(8, dtype=np.int32))
    store.begin()
    with pytest.raises(ReadError, match="closed"), store.experts(2, np.arange(8, dtype=np.int32)) as batches:
        list(batches)


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("interrupted", [False, True])
def test_an_abandoned_layer_gives_its_slots_back(models, kernels, taken, interrupted):
    """After so many batches, also none; interrupted: its block was left without its end having run."""
    with streamed(models, "olmoe", kernels, slots=5, wave_tokens=256) as (decoder, store, expected):
        for layer in (0, 1, 2, 0, 1, 2):
            lease = store.experts(layer, np.arange(8, dtype=np.int32))
            batches = lease.__enter__()
            for _ in range(taken):
                next(batches)
            if interrupted:
                store.begin()
            else:
                lease.__exit__(None, None, None)
        assert np.array_equal(run(decoder, "olmoe"), expected)
        check_whole(store)


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


@pytest.mark.parametrize("name", ["olmoe", "smallthinker", "qwen2moe"])
@pytest.mark.parametrize("damaged", ["token_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.1.attn_q.weight"])
def test_a_damaged_mixture_says_so_and_never_waits(tmp_path, kernels, name, damaged):
    """Routers that say NaN choose all the same, and the bits are the resident model's."""
    path = write(INSTANCES[name], tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        info = gguf.tensors[damaged]
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(np.full(info.n_bytes // 4, np.nan, np.float32).tobytes())
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        expected = run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels), name)
        assert np.isnan(expected).any()
        for slots in (2, 2 * spec.n_experts_used + 2):
            with closing(StreamedExpertStore(gguf, spec, kernels, slots=slots, wave_tokens=7)) as store:
                decoder = Decoder(spec, store, kernels)
                for _ in range(2):
                    cache, tokens = decoder.new_cache(128), tokens_of(INSTANCES[name])
                    rows = [decoder.forward(tokens[:PROMPT], cache, logits="all", cancelled=patience())]
                    rows += [decoder.forward([token], cache, cancelled=patience(400)) for token in tokens[PROMPT:]]
                    assert np.array_equal(np.concatenate(rows), expected, equal_nan=True)
                check_whole(store)


def test_expectations_give_way_when_all_slots_are_expected(models, kernels):
    """Two slots are left of six, and both hold what another layer is going to want."""
    with streamed(models, "olmoe", kernels, slots=6, wave_tokens=256) as (_, store, _):
        with store.lend(4 * store.cache.slot_bytes):
            for layer in (1, 2):
                store.expect(layer, np.array([0, 1], np.int32))
            with store.experts(0, np.array([4, 5], np.int32), cancelled=patience(100)) as batches:
                assert sorted(each.id for batch in batches for each in batch) == [4, 5]
        check_whole(store)


def patience(polls=1000):
    """For what would wait for ever: cancels after five seconds."""
    answers = iter([False] * polls + [True])
    return lambda: next(answers)


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


def test_closing_in_the_middle_of_a_sparse_layer(models, kernels, monkeypatch):
    slow_reads(monkeypatch, 3, most_s=0.01)
    with streamed(models, "relu", kernels, pinned=[], wave_tokens=256, neuron_slots=32) as (decoder, store, expected):
        with store.neurons(1, np.arange(32, dtype=np.int32)) as batches:
            next(batches)
        assert np.array_equal(run(decoder, "relu"), expected)


def test_an_interrupt_while_neurons_are_read(models, kernels, monkeypatch):
    """What was not waited for is not taken for there."""
    with streamed(models, "relu-Q8_0", kernels, pinned=[], wave_tokens=256, neuron_slots=96) as (decoder, _, expected):
        real = flash.FlashReader.wait
        turns = iter(range(1000))

        def interrupted(reader, news, cancelled):
            if next(turns) == 2:
                raise KeyboardInterrupt
            return real(reader, news, cancelled)

        with monkeypatch.context() as patch:
            patch.setattr(flash.FlashReader, "wait", interrupted)
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


def test_lent_memory_is_free_meanwhile_and_used_again(models, kernels, monkeypatch):
    with streamed(models, "olmoe", kernels, slots=20, wave_tokens=256) as (decoder, store, expected):
        run(decoder, "olmoe")
        store.expect(2, np.arange(8, dtype=np.int32))
        with store.lend(12 * store.cache.slot_bytes - 5):
            assert len(store.cache.resident()) <= 8
            with store.lend(100 * store.cache.slot_bytes):
                assert len(store.cache.resident()) <= 2, "all but two"
        for lent in (12 * store.cache.slot_bytes - 5, 100 * store.cache.slot_bytes):
            monkeypatch.setattr(decoder_module, "activation_bytes", lambda spec, rows, lent=lent: lent)
            assert np.array_equal(run(decoder, "olmoe"), expected), "with the few that are left"
        assert len(store.cache.resident()) > 8
        check_whole(store)
