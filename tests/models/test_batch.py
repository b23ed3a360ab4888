"""Rows of several sequences in one step: whatever a row's company, its bits are those it has alone."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.errors import Cancelled, ContextLengthError, UsageError
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kv import KvOptions
from edgerun.models import Batch, Decoder, Stretch
from edgerun.models.prompt import PromptWalk, on_backend
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from tests.models.instances import INSTANCES, VOCAB, open_instance

LONG = ("llama", "gemma2")  # beyond a page of positions
ROOM = 620


def alone(decoder: Decoder, ids: list[int]) -> np.ndarray:
    """(n, vocab) logits of a sequence without company, as one prompt."""
    return decoder.forward(ids, decoder.new_cache(ROOM), logits="all")


def together(decoder: Decoder, texts: list[list[int]], steps: list[list[int]]) -> list[np.ndarray]:
    """The same of several; steps[i][t] is how many ids of text t go into step i."""
    caches = [decoder.new_cache(ROOM) for _ in texts]
    rows: list[list[np.ndarray]] = [[] for _ in texts]
    for step in steps:
        who = [t for t, n in enumerate(step) if n]
        stretches = [Stretch(caches[t], texts[t][caches[t].length :][: step[t]], "all") for t in who]
        for t, out in zip(who, decoder.step(Batch(stretches)), strict=True):
            rows[t].append(out)
    return [np.concatenate(each) for each in rows]


def random_steps(rng: np.random.Generator, lengths: list[int]) -> list[list[int]]:
    """Prompts' stretches of any length beside single tokens, then single tokens only, by fewer and fewer."""
    left, steps = list(lengths), []
    while any(left):
        most = [int(rng.integers(1, 40)) if rng.random() < 0.3 and len(steps) < 6 else 1 for _ in left]
        steps.append([min(n, k) if rng.random() < 0.95 else 0 for n, k in zip(left, most, strict=True)])
        left = [n - k for n, k in zip(left, steps[-1], strict=True)]
    return [step for step in steps if any(step)]


def check(decoder: Decoder, reference: Decoder, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
    want = [alone(reference, text) for text in texts]
    got = together(decoder, texts, random_steps(rng, lengths))
    for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert np.isfinite(theirs).all()
        wrong = np.flatnonzero((mine.view(np.int32) != theirs.view(np.int32)).any(axis=1))
        assert len(wrong) == 0, f"positions {wrong.tolist()} of text {number} differ"


@pytest.mark.parametrize("name", INSTANCES)
def test_batched_is_alone(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        decoder, reference = Decoder(spec, store, kernels), Decoder(spec, store, kernels)
        more = 520 if name in LONG else 0
        check(decoder, reference, [32 + more, 21, 29, 12 + more, 17, 25, 32, 9], 1)
        check(decoder, reference, [12, 21, 7], 2)  # of four rows one is nobody's
        eager = Decoder(spec, store, kernels)
        eager.passes.recording = None
        check(eager, reference, [14, 20, 11, 24, 8], 3)


@pytest.mark.parametrize("company", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13])
@pytest.mark.parametrize("name", ["llama-Q4_0", "qwen2moe", "gemma3", "relu-Q8_0", "smallthinker"])
def test_any_number_of_sequences(name, company, directory, kernels):
    """Token by token from the first on, so that the first step of so many rows is the one that is recorded."""
    gguf, spec = open_instance(name, directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        decoder, reference = Decoder(spec, store, kernels), Decoder(spec, store, kernels)
        rng = np.random.default_rng(company)
        texts = [rng.integers(0, VOCAB, 6).tolist() for _ in range(company)]
        got = together(decoder, texts, [[1] * company] * 6)
        for mine, text in zip(got, texts, strict=True):
            assert mine.tobytes() == alone(reference, text).tobytes()


@pytest.mark.parametrize("kv", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["qwen3", "gemma3-Q8_0"])  # heads of 32 and more dimensions
def test_quantised_keys_and_values(name, kv, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        store, options = ResidentStore(gguf, spec, kernels), KvOptions(KV_FORMATS[kv], KV_FORMATS["q8_0"])
        decoder, reference = (Decoder(spec, store, kernels, kv=options) for _ in range(2))
        check(decoder, reference, [50, 31, 44, 12, 23], 4)


@pytest.mark.parametrize("name", ["llama", "qwen2moe", "gemma2", "relu"])
def test_of_the_reference(name, directory):
    reference = ReferenceKernels()
    gguf, spec = open_instance(name, directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, reference), reference)
        check(decoder, decoder, [20, 9, 14], 5)


@pytest.mark.parametrize("name", ["llama-Q4_0", "qwen2moe", "smallthinker", "gemma3", "relu-Q8_0"])
def test_streamed(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        resident = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        if INSTANCES[name].experts:
            store = StreamedExpertStore(gguf, spec, kernels, slots=10, wave_tokens=32)
        else:
            more = {"neuron_slots": 96} if spec.sparse else {}
            store = StreamedLayerStore(gguf, spec, kernels, pinned=[], wave_tokens=32, **more)
        with closing(store):
            check(Decoder(spec, store, kernels), resident, [40, 23, 31, 12, 50, 44, 8, 19], 6)


def test_a_streamed_expert_is_asked_for_once_for_all_rows(directory, kernels):
    gguf, spec = open_instance("qwen2moe", directory)
    with gguf, closing(StreamedExpertStore(gguf, spec, kernels, slots=8, wave_tokens=32)) as store:
        decoder = Decoder(spec, store, kernels)
        asked: list[tuple[int, list[int]]] = []
        lent = store.experts

        def experts(layer, ids, *rest):
            asked.append((layer, ids.tolist()))
            return lent(layer, ids, *rest)

        store.experts = experts
        rng = np.random.default_rng(0)
        caches = [decoder.new_cache(32) for _ in range(8)]
        for _ in range(3):
            asked.clear()
            chosen: dict[int, set[int]] = {}
            decoder.on_routing = lambda layer, ids, chosen=chosen: chosen.update({layer: set(ids.reshape(-1).tolist())})
            decoder.step(Batch([Stretch(cache, [int(rng.integers(0, VOCAB))]) for cache in caches]))
            assert asked == [(layer, sorted(chosen[layer])) for layer in range(spec.n_layers)]


@pytest.mark.parametrize("name", ["llama-Q4_0", "gemma3", "qwen3moe"])
def test_a_short_stretch_is_decoding(name, directory, kernels):
    """What checks drafts: the logits of several positions at once are those of one by one."""
    gguf, spec = open_instance(name, directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        decoder, reference = Decoder(spec, store, kernels), Decoder(spec, store, kernels)
        ids = np.random.default_rng(3).integers(0, VOCAB, 30).tolist()
        cache, other = decoder.new_cache(64), reference.new_cache(64)
        want = np.concatenate([reference.forward([token], other) for token in ids])
        got = [decoder.forward(ids[low:high], cache, logits="all") for low, high in ((0, 5), (5, 9), (9, 17), (17, 30))]
        assert np.concatenate(got).tobytes() == want.tobytes()
        cache.truncate(12)
        assert decoder.forward(ids[12:18], cache, logits="all").tobytes() == want[12:18].tobytes()


def test_what_is_wanted(directory, kernels):
    gguf, spec = open_instance("llama", directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        for lengths in ((3, 2, 1, 2), (30, 20, 1, 10)):  # recorded, and not
            rng = np.random.default_rng(1)
            texts = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
            caches = [decoder.new_cache(64) for _ in texts]
            wants = ("all", "last", "none", "hidden")
            stretches = [Stretch(*each) for each in zip(caches, texts, wants, strict=True)]
            every, last, none, hidden = decoder.step(Batch(stretches))
            assert none is None
            assert every.tobytes() == alone(decoder, texts[0]).tobytes()
            assert last.tobytes() == alone(decoder, texts[1])[-1:].tobytes()
            assert hidden.tobytes() == decoder.hidden(texts[3], decoder.new_cache(64)).tobytes()
            assert [cache.length for cache in caches] == list(lengths)


def test_a_batch_must_make_sense(directory, kernels):
    gguf, spec = open_instance("llama", directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        caches = [decoder.new_cache(16) for _ in range(2)]
        for make, text in (
            (lambda: Batch([]), "at least one stretch"),
            (lambda: Batch([Stretch(caches[0], [1]), Stretch(caches[0], [2])]), "only one stretch"),
            (lambda: Stretch(caches[0], [1], "some"), "not 'some'"),
            (lambda: decoder.step(Batch([Stretch(caches[0], [1]), Stretch(caches[1], [])])), "at least one token"),
            (lambda: decoder.step(Batch([Stretch(caches[0], [1]), Stretch(caches[1], [VOCAB])])), "0 to 95"),
            (lambda: decoder.step(Batch([Stretch(caches[0], [1]), Stretch(caches[1], [-1])])), "0 to 95"),
        ):
            with pytest.raises(UsageError, match=text):
                make()
        assert [cache.length for cache in caches] == [0, 0]


@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma3"])
def test_after_an_error_all_sequences_are_as_they_were(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        decoder, reference = Decoder(spec, store, kernels), Decoder(spec, store, kernels)
        rng = np.random.default_rng(2)
        texts = [rng.integers(0, VOCAB, 300).tolist() for _ in range(3)]
        caches = [decoder.new_cache(310) for _ in texts]
        decoder.step(Batch([Stretch(cache, text[:5]) for cache, text in zip(caches, texts, strict=True)]))
        for many in (295, 1):  # of several waves, and replayed
            stretches = [Stretch(cache, text[5 : 5 + many]) for cache, text in zip(caches, texts, strict=True)]
            tight = decoder.new_cache(max(1, many - 1))
            tight.truncate(0)
            if many > 1:
                with pytest.raises(ContextLengthError):
                    decoder.step(Batch([*stretches, Stretch(tight, texts[0][:many])]))
            for calls in range(1, 2 if many == 1 else 9):
                left = iter([False] * (calls - 1) + [True] * 1000)
                with pytest.raises(Cancelled):
                    decoder.step(Batch(stretches), cancelled=lambda left=left: next(left))
            assert [cache.length for cache in caches] == [5, 5, 5]
        got = decoder.step(Batch([Stretch(cache, text[5:9], "all") for cache, text in zip(caches, texts, strict=True)]))
        for mine, text in zip(got, texts, strict=True):
            assert mine.tobytes() == alone(reference, text[:9])[5:].tobytes()


def test_a_prompt_backend_gets_prompts_alone(directory, kernels):
    """Its arithmetic may be another: what others compute beside it must not go through it, nor prompts together."""
    gguf, spec = open_instance("llama", directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)

        class Coarse:
            name, least_tokens, wave_tokens = "coarse", 8, 64

            def __init__(self) -> None:
                self.seen: list[int] = []

            def run(self, walk: PromptWalk) -> None:
                self.seen.append(len(walk.x))
                for layer in range(walk.spec.n_layers):
                    walk.dense(layer, lambda *seen: None)
                    walk.x[:] = np.round(walk.x, 2)

        rng = np.random.default_rng(9)
        texts = [rng.integers(0, VOCAB, n).tolist() for n in (40, 1, 3, 20)]
        with on_backend(decoder, Coarse()):
            want = [alone(decoder, text) for text in texts]
        with on_backend(decoder, Coarse()) as _:
            got = decoder.step(Batch([Stretch(decoder.new_cache(64), text, "all") for text in texts]))
            assert decoder.prompt_backend.seen == [40, 20]
        for mine, theirs in zip(got, want, strict=True):
            assert mine.tobytes() == theirs.tobytes()
