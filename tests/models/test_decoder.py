"""The decoder's contract: replay goes on whatever the cache, errors change nothing, the cache may be anybody's. That
replay equals eager is among `test_same_bits`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import Cancelled, ContextLengthError, UsageError
from edgerun.formats.gguf import open_gguf
from edgerun.models import Decoder, load_spec
from edgerun.weights import ResidentStore
from tests.kv.holding import restore
from tests.models.instances import INSTANCES, tokens_of, write


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, kernels):
    directory: Path = tmp_path_factory.mktemp("decoders")

    def decoder(name: str) -> Decoder:
        path = directory / f"{name}.gguf"
        if not path.exists():
            write(INSTANCES[name], path)
        gguf = open_gguf(path)
        spec = load_spec(gguf)
        return Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)

    return decoder


def test_replay_survives_growth_and_other_caches(make):
    decoder, plain = make("llama"), make("llama")
    plain.passes.recording = None
    rng = np.random.default_rng(0)
    caches = [(d.new_cache(2000), d.new_cache(2000)) for d in (decoder, plain)]
    for step in range(600):
        token = [int(rng.integers(0, decoder.spec.vocab_size))]
        which = int(rng.integers(0, 2))
        got, want = decoder.forward(token, caches[0][which]), plain.forward(token, caches[1][which])
        assert np.array_equal(got, want), step
    assert max(cache.length for cache in caches[0]) > 256


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_windows_let_go_of_pages(make, name):
    """The same bits as with all of them, also after taking back as much as is kept."""
    decoder = make(name)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, decoder.spec.vocab_size, 900).tolist()
    whole = decoder.forward(ids, decoder.new_cache(1000), logits="all")
    cache = decoder.new_cache(1000)
    for low in range(0, 800, 100):
        decoder.forward(ids[low : low + 100], cache, logits="none")
    groups = {group.window: group for group in decoder.pages.groups}
    held = {group.window: len(list(each.all())) for group, each in zip(groups.values(), cache._held, strict=True)}
    assert held[0] == 4 and held[12] <= groups[12].most_pages(800, 100) < 4
    for low in (800, 700, 600, 850):
        if low <= cache.length:
            assert cache.held_from(low) == low
            cache.truncate(low)
        got = [decoder.forward(ids[cache.length : low + 30], cache, logits="all")]
        got += [decoder.forward([token], cache) for token in ids[low + 30 : low + 50]]
        assert np.array_equal(np.concatenate(got)[-50:], whole[low : low + 50]), low
    assert cache.held_from(200) == 0


@pytest.mark.parametrize("name", INSTANCES)
def test_what_was_saved_goes_on_with_the_same_bits(name, make):
    decoder, other = make(name), make(name)
    ids = np.random.default_rng(0).integers(0, decoder.spec.vocab_size, 340).tolist()  # beyond a page of positions
    cache, read = decoder.new_cache(400), other.new_cache(400)
    for low in range(0, 300, 100):
        decoder.forward(ids[low : low + 100], cache, logits="none")
    arrays = {name: cache.saved(name).copy() for name in cache.saved_forms()}
    restore(read, cache.length, cache.saved_forms(), arrays.__getitem__)
    for low, high in ((300, 301), (301, 330), *((i, i + 1) for i in range(330, 340))):
        want, got = (each.forward(ids[low:high], c, logits="all") for each, c in ((decoder, cache), (other, read)))
        assert np.array_equal(got, want), low
    assert decoder.arithmetic == other.arithmetic


def test_logits_are_computed_only_where_they_are_wanted(make):
    decoder, other = make("llama"), make("llama")
    caches = decoder.new_cache(20), other.new_cache(20)
    for step, token in enumerate((3, 1, 4, 1, 5, 9)):
        wanted = step % 3 != 1
        decoder.passes.few.logits[:] = np.nan
        got = decoder.forward([token], caches[0], logits="last" if wanted else "none")
        want = other.forward([token], caches[1])
        assert np.array_equal(got, want) if wanted else got is None
        if step and not wanted:  # all of the first token is computed, to be recorded
            assert np.isnan(decoder.passes.few.logits).all()


def test_errors_leave_the_cache_as_it_was(make, monkeypatch):
    decoder = make("llama")
    cache = decoder.new_cache(30)
    decoder.forward([1, 2, 3], cache)
    for ids, error, text in (
        ([], UsageError, "at least one"),
        ([96], UsageError, "0 to 95"),
        ([-1, 4], UsageError, "0 to 95"),
        ([5] * 28, ContextLengthError, "28 more tokens after 3 do not fit a context of 30"),
    ):
        with pytest.raises(error, match=text):
            decoder.forward(ids, cache)
        assert cache.length == 3
    with pytest.raises(UsageError, match="none, last, all or hidden"):
        decoder.forward([1], cache, logits="some")

    calls = iter([False, True])
    with pytest.raises(Cancelled):
        decoder.forward(list(range(9)), cache, cancelled=lambda: next(calls))
    assert cache.length == 3

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(decoder.kernels, "attention", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder.forward([1, 2], cache)
    assert cache.length == 3
    want = make("llama")
    fresh = want.new_cache(30)
    whole = want.forward([1, 2, 3, 9, 8], fresh)
    np.testing.assert_allclose(decoder.forward([9, 8], cache), whole, rtol=1e-4, atol=1e-4)


def test_kinds_of_result(make):
    decoder = make("qwen3moe")
    ids = tokens_of(INSTANCES["qwen3moe"])
    everything = decoder.forward(ids, decoder.new_cache(64), logits="all")
    assert everything.shape == (len(ids), decoder.spec.vocab_size)
    assert decoder.forward(ids, decoder.new_cache(64), logits="none") is None
    last = decoder.forward(ids, decoder.new_cache(64))
    assert np.array_equal(last[0], everything[-1])
    hidden = decoder.hidden(ids, decoder.new_cache(64))
    assert hidden.shape == (len(ids), decoder.spec.d_model)
