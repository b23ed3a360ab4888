"""Streamed equals resident after whatever went wrong: cancelled, interrupted, closed, failing disks, changed files."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager

import numpy as np
import pytest

from edgerun.errors import Cancelled, ReadError
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, flash
from tests.models.instances import INSTANCES, tokens_of, write
from tests.weights.faulty_disk import failing_reads, healthy_reads, slow_reads, stuck_reads
from tests.weights.streaming import PROMPT, SPARSE_MODELS, check_whole, patience, run, streamed, tight


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
                next(batches, None)  # how many there are is a matter of what was read meanwhile
            if interrupted:
                store.begin()
            else:
                lease.__exit__(None, None, None)
        assert np.array_equal(run(decoder, "olmoe"), expected)
        check_whole(store)


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
