"""The logits after a position are the same to the byte however its sequence was cut, recorded or not, streamed or
not: whole, token by token, in random pieces."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.errors import Cancelled, UsageError
from edgerun.kernels.reference import ReferenceKernels
from edgerun.models import Batch, Decoder, Stretch
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore
from tests.models.instances import INSTANCES, VOCAB, open_instance

TOKENS = 140  # beyond two blocks of positions
LONG = ("llama", "gemma2", "qwen3moe", "lfm2")  # beyond two chunks of positions, too
LONG_TOKENS = 560


def logits_of(decoder: Decoder, ids: list[int], ends: list[int]) -> np.ndarray:
    """(n, vocab) f32 of a sequence that is cut at `ends`."""
    cache = decoder.new_cache(len(ids) + 5)
    rows = []
    low = 0
    for high in ends:
        rows.append(decoder.forward(ids[low:high], cache, logits="all"))
        low = high
    return np.concatenate(rows)


def random_ends(rng: np.random.Generator, n: int) -> list[int]:
    """Ends of pieces, some of them of one token."""
    cuts = {int(cut) for cut in rng.integers(1, n, 8)}
    return sorted(cuts | {min(n, cut + 1) for cut in list(cuts)[:4]} | {n})


def check(decoder: Decoder, other: Decoder, n: int) -> None:
    """`other`: the same without recording, or streamed."""
    rng = np.random.default_rng(n)
    ids = rng.integers(0, VOCAB, n).tolist()
    whole = logits_of(decoder, ids, [n])
    assert np.isfinite(whole).all()
    cuts = [random_ends(rng, n), random_ends(rng, n), [n - 1, n]]
    cuts.append([*range(1, 10), n - 20, *range(n - 19, n + 1)])  # beginning so, and beyond a block of positions
    for each in (decoder, other):
        for ends in cuts:
            got = logits_of(each, ids, ends)
            wrong = np.flatnonzero((got.view(np.int32) != whole.view(np.int32)).any(axis=1))
            assert len(wrong) == 0, f"cut at {ends}: positions {wrong.tolist()} differ"


@pytest.mark.parametrize("name", INSTANCES)
def test_however_it_is_cut(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        decoder, eager = Decoder(spec, store, kernels), Decoder(spec, store, kernels)
        eager.passes.recording = None
        check(decoder, eager, LONG_TOKENS if name in LONG else TOKENS)


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "qwen2moe", "phi3", "bitnet", "smallthinker", "relu", "llama-Q4_K", "relu-Q4_K", "lfm2"]
)
def test_of_the_reference(name, directory):
    reference = ReferenceKernels()
    gguf, spec = open_instance(name, directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, reference), reference)
        check(decoder, decoder, 70)


@pytest.mark.parametrize(
    "name",
    [
        "llama-Q4_0",
        "qwen2moe",
        "gemma3",
        "relu-Q8_0",
        "relu-Q4_K",
        "lfm2-Q4_K",
        "qwen35",
        "qwen35moe",
        "nemotron_h_moe",
        "cohere2",
        "gptoss-MXFP4",
        "llama4",
        "erniemoe",
        "bailingmoe2",
        "deepseek-leading-small-Q8_0",
        "lfm2moe",
        "gemma3n",
    ],
)
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
            check(resident, Decoder(spec, store, kernels), 70)


@pytest.mark.parametrize("name", ["llama-Q4_0", "gemma3", "qwen2moe", "gemma3n"])
def test_some_layers_now_and_others_later(name, directory, kernels):
    """Two sequences' rows stop after every layer, and steps of a third come in between: all have the bits that they
    have alone; and when it is cancelled halfway, nothing has changed."""
    gguf, spec = open_instance(name, directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        assert decoder.can_pause
        ids = np.random.default_rng(1).integers(0, VOCAB, TOKENS).tolist()
        whole = logits_of(decoder, ids, [TOKENS])
        first, second, third = (decoder.new_cache(TOKENS) for _ in range(3))
        decoder.forward(ids[:50], first)
        stretches = Stretch(first, ids[50:90], "all"), Stretch(second, ids[:7], "last")
        abandoned = decoder.start(Batch(stretches))
        assert decoder.go_on(abandoned, lambda: True) is None
        with pytest.raises(Cancelled):
            decoder.go_on(abandoned, lambda: False, cancelled=lambda: True)
        wave = decoder.start(Batch(stretches))
        n, out = 0, None
        while out is None:
            assert (first.length, second.length) == (50, 0)
            out = decoder.go_on(wave, lambda: True)
            assert decoder.forward([ids[n]], third).tobytes() == whole[n].tobytes()
            n += 1
            decoder.forward(ids[20 : 20 + 9 * n], decoder.new_cache(TOKENS), logits="none")
        assert n == spec.n_layers
        assert (first.length, second.length) == (90, 7)
        assert out[0].tobytes() == whole[50:90].tobytes()
        assert out[1].tobytes() == whole[6:7].tobytes()
        assert decoder.forward(ids[90:], first, logits="all").tobytes() == whole[90:].tobytes()


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_recurrent_layers_go_at_once(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        assert not decoder.can_pause
        with pytest.raises(UsageError, match="some layers"):
            decoder.start(Batch((Stretch(decoder.new_cache(9), [1, 2]),)))
