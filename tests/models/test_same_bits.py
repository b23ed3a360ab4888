"""The logits after a position are the same to the byte however its sequence was cut, recorded or not, streamed or
not: whole, token by token, in random pieces."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from edgerun.kernels.reference import ReferenceKernels
from edgerun.models import Decoder
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


def check(decoder: Decoder, other: Decoder, n: int, single: bool = True) -> None:
    """`other`: the same without recording, or streamed."""
    rng = np.random.default_rng(n)
    ids = rng.integers(0, VOCAB, n).tolist()
    whole = logits_of(decoder, ids, [n])
    assert np.isfinite(whole).all()
    cuts = [random_ends(rng, n), random_ends(rng, n), [n - 1, n]]
    if single:
        cuts.append(list(range(1, n + 1)))
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
        "deepseek-leading-Q8_0",
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
