"""Ctrl-C at the lines of a short run: the next call answers as if nothing had been, and nothing is lost."""

from __future__ import annotations

import gc
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import Cancelled
from edgerun.formats.gguf import GgmlType, open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from edgerun.weights.flash import FlashReader
from tests.interrupts import Interrupts
from tests.models.instances import Instance, write

MIXTURE = Instance("tiny-mixture", "olmoe", layers=2, experts=4, used=2, ff=32, kv_heads=4)
EARLY = Instance("tiny-early", "smallthinker", layers=2, experts=4, used=2, ff=32, window=4096)
DENSE = Instance("tiny-dense", "llama", layers=3)
SPARSE = Instance("tiny-sparse", "llama", GgmlType.F16, layers=2, ff=32, sparse=True)
STORES = {
    "experts": (MIXTURE, StreamedExpertStore, {"slots": 5, "predict": True}),
    "experts, few slots": (EARLY, StreamedExpertStore, {"slots": 2, "predict": False}),
    "layers": (DENSE, StreamedLayerStore, {"pinned": []}),
    "neurons": (SPARSE, StreamedLayerStore, {"pinned": [0], "neuron_slots": 6}),
}
PROMPT, LATER = [5, 9, 2], [7, 11]


def run(decoder: Decoder, cancelled=None) -> np.ndarray:
    """Logits of a prompt, of a token that is recorded, and of one that is replayed."""
    cache = decoder.new_cache(16)
    rows = [decoder.forward(PROMPT, cache, logits="all", cancelled=cancelled)]
    rows += [decoder.forward([token], cache, cancelled=cancelled) for token in LATER]
    return np.concatenate(rows)


def patience():
    """For what would wait for ever: cancels after so many looks."""
    looks = iter([False] * 400)
    return lambda: next(looks, True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory, kernels):
    folder, known = tmp_path_factory.mktemp("interrupts"), {}

    def get(instance):
        if instance.name not in known:
            gguf = open_gguf(write(instance, folder / f"{instance.name}.gguf"))
            spec = load_spec(gguf)
            known[instance.name] = gguf, spec, run(Decoder(spec, ResidentStore(gguf, spec, kernels), kernels))
        return known[instance.name]

    yield get
    for gguf, _, _ in known.values():
        gguf.close()


@pytest.mark.parametrize("name", STORES)
def test_at_lines_of_a_prompt_of_a_first_and_of_a_second_token(opened, kernels, name):
    """The decoder is the same for the call that is interrupted and for the one after it, and the store for all of
    them, so that what one interrupt lost another would miss."""
    instance, kind, options = STORES[name]
    gguf, spec, expected = opened(instance)
    interrupts = Interrupts("weights", "models", "kv")
    with closing(kind(gguf, spec, kernels, wave_tokens=256, **options)) as store:
        readers, files = store.flash._threads[:], open_files()
        moments = interrupts.moments(lambda: run(Decoder(spec, store, kernels)), "step")
        assert len(moments) > 300
        for n in moments[list(STORES).index(name) :: 6]:  # of each store another sixth: all of them take minutes
            decoder = Decoder(spec, store, kernels)
            interrupts.at(n, lambda decoder=decoder: run(decoder))
            try:
                again = run(decoder, patience())
            except Cancelled:
                raise AssertionError(f"after an interrupt at {interrupts.where} a call waits for ever") from None
            assert np.array_equal(again, expected), f"wrong after an interrupt at {interrupts.where}"
            check_whole(store, readers)
        assert open_files() == files


def check_whole(store, readers) -> None:
    assert store.flash._threads == readers
    assert all(thread.is_alive() for thread in readers)
    if isinstance(store, StreamedExpertStore):
        store.begin()
        store.cache.check()


def test_two_interrupts_in_a_row(opened, kernels):
    """The second one falls into what puts the first one right."""
    gguf, spec, expected = opened(MIXTURE)
    interrupts = Interrupts("weights", "models")
    with closing(StreamedExpertStore(gguf, spec, kernels, slots=5, wave_tokens=256)) as store:
        rng = np.random.default_rng(1)
        lines = interrupts.moments(lambda: run(Decoder(spec, store, kernels)))[-1]
        for _ in range(40):
            decoder = Decoder(spec, store, kernels)
            interrupts.at(int(rng.integers(lines)), lambda decoder=decoder: run(decoder))
            interrupts.at(int(rng.integers(120)), lambda decoder=decoder: run(decoder))
            assert np.array_equal(run(decoder, patience()), expected), interrupts.where
            check_whole(store, store.flash._threads)


@pytest.mark.parametrize("name", STORES)
def test_while_a_model_is_loaded(opened, kernels, name):
    """Threads and files of what was never finished go."""
    instance, kind, options = STORES[name]
    gguf, spec, _ = opened(instance)
    interrupts = Interrupts("weights")

    whole = []

    def load():
        whole.append(kind(gguf, spec, kernels, wave_tokens=256, **options))

    load()
    whole.pop().close()
    gc.collect()
    threads, files = threading.active_count(), open_files()
    for n in interrupts.moments(load):
        interrupts.at(n, load)
        while whole:
            whole.pop().close()
    for _ in range(100):  # the last to let go of a store may be one of its own threads, a moment later
        gc.collect()
        if (threading.active_count(), open_files()) == (threads, files):
            break
        time.sleep(0.05)
    assert (threading.active_count(), open_files()) == (threads, files)


def test_while_a_reader_is_collected(tmp_path, monkeypatch):
    """Python drops the interrupt: the threads and the file go all the same. (Not where it comes before the first line:
    nothing can be done about that.)"""
    monkeypatch.setattr(sys, "unraisablehook", lambda said: dropped.append(said.exc_type))
    (tmp_path / "weights").write_bytes(bytes(1 << 12))
    interrupts, held, dropped = Interrupts("weights"), [FlashReader([tmp_path / "weights"])], []
    for n in interrupts.moments(held.clear)[1:]:
        before = threading.active_count(), open_files()
        held.append(FlashReader([tmp_path / "weights"]))
        interrupts.at(n, held.clear)
        assert (threading.active_count(), open_files()) == before, interrupts.where
    assert set(dropped) == {KeyboardInterrupt}


def open_files() -> int:
    gc.collect()  # what other tests left shall not go in between
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
