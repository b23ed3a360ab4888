"""Texts without an end: the last positions and the first few are seen and kept, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kv import KvLedger
from edgerun.models import Batch, Decoder, Stretch
from edgerun.models.holdings import kv_bytes
from edgerun.models.window import with_window
from edgerun.weights import ResidentStore
from tests.kv.holding import restore
from tests.models.instances import open_instance

NAMES = ["llama", "gemma3", "qwen3moe", "phi3"]
WINDOW, FIRST = 24, 4


def decoder_of(name: str, directory, kernels, window: int | None = WINDOW) -> Decoder:
    gguf, spec = open_instance(name, directory)
    if window is not None:
        spec = with_window(replace(spec, context_length=512), window, FIRST)
    return Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, kv_ledger=KvLedger(None))


def ids_of(decoder: Decoder, n: int) -> list[int]:
    return np.random.default_rng(3).integers(0, decoder.spec.vocab_size, n).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_text_within_the_window_is_as_without(name, directory, kernels):
    plain, narrow = (decoder_of(name, directory, kernels, window) for window in (None, WINDOW))
    ids = ids_of(plain, WINDOW + FIRST)
    want = plain.forward(ids, plain.new_cache(64), logits="all")
    got = narrow.forward(ids, narrow.new_cache(64), logits="all")
    np.testing.assert_allclose(got[:WINDOW], want[:WINDOW], rtol=1e-4, atol=1e-4)
    # Beyond it the first positions are seen by queries that stand where they stand: nearly the same numbers.
    np.testing.assert_allclose(got[WINDOW:], want[WINDOW:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_how_a_text_is_cut(name, directory, kernels):
    decoder = decoder_of(name, directory, kernels)
    ids = ids_of(decoder, 90)
    whole = decoder.forward(ids, decoder.new_cache(128), logits="all")
    pieces, low = decoder.new_cache(128), 0
    for high in (13, 14, 22, 60, *range(61, 91)):
        got = decoder.forward(ids[low:high], pieces, logits="all")
        np.testing.assert_array_equal(got, whole[low:high])
        low = high
    stranger = decoder.new_cache(128)
    decoder.forward(ids[:40], stranger, logits="none")
    twin = pieces.copy(90)
    alone = decoder.forward([5], pieces, logits="all")
    both = decoder.step(Batch((Stretch(stranger, [7, 8], "all"), Stretch(twin, [5], "all"))))
    np.testing.assert_array_equal(both[1], alone)


def test_memory_does_not_grow(directory, kernels):
    decoder = decoder_of("llama", directory, kernels, 300)
    sequence = decoder.new_cache(8000)
    ids = ids_of(decoder, 4000)
    most = 0
    for low in range(0, len(ids), 250):
        decoder.forward(ids[low : low + 250], sequence, logits="none")
        sequence.check_integrity()
        most = max(most, sequence.n_bytes)
    assert (
        most <= kv_bytes(decoder.spec, 8000, 250) < kv_bytes(decoder_of("llama", directory, kernels, None).spec, 2000)
    )
    assert sequence.pages(0).table[0] and not sequence.pages(0).table[1], "the first page stays, the next does not"


def test_what_is_kept_can_be_saved_shared_and_cut(directory, kernels):
    decoder = decoder_of("llama", directory, kernels, 300)
    ids = ids_of(decoder, 1500)
    sequence = decoder.new_cache(4000)
    decoder.forward(ids, sequence, logits="none")
    sequence.remember(ids)
    want = decoder.forward([1, 2, 3], sequence.copy(1500), logits="all")
    forms = sequence.saved_forms()
    saved = {name: sequence.saved(name).copy() for name in forms}
    read = decoder.new_cache(4000)
    restore(read, 1500, forms, saved.__getitem__)
    read.check_integrity()
    np.testing.assert_array_equal(decoder.forward([1, 2, 3], read, logits="all"), want)
    recalled = decoder.new_cache(4000)
    assert recalled.recall([*ids, 1, 2]) == 1500
    recalled.check_integrity()
    np.testing.assert_array_equal(decoder.forward([1, 2, 3], recalled, logits="all"), want)
    decoder.forward(ids[:300], sequence, logits="none")
    assert sequence.held_from(1700) == 1700 and sequence.held_from(700) == 0


def test_a_window_wider_than_the_model_is_refused(directory, kernels):
    _, spec = open_instance("llama", directory)
    with pytest.raises(UsageError, match="more than the 128 that this model was made for"):
        with_window(spec, 126, 4)
