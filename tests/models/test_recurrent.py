"""Models with recurrent layers: a sequence is copied, cut back and put into files, and goes on to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.models import Decoder
from edgerun.weights import ResidentStore
from tests.models.instances import VOCAB, open_instance

NAMES = ("qwen35", "falcon-h1", "lfm2")


@pytest.mark.parametrize("name", NAMES)
def test_copies_cuts_and_files(name, directory, kernels):
    gguf, spec = open_instance(name, directory)
    with gguf:
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        ids = np.random.default_rng(5).integers(0, VOCAB, 60).tolist()
        other = ids[:40] + ids[10:30]
        want, theirs = (decoder.forward(each, decoder.new_cache(64), logits="all") for each in (ids, other))

        def goes_on(cache, text, rows):
            start = cache.length
            got = decoder.forward(text[start:50], cache, logits="all")
            assert got.tobytes() == rows[start:50].tobytes()
            for at in range(50, 60):
                assert decoder.forward(text[at : at + 1], cache).tobytes() == rows[at : at + 1].tobytes()

        cache = decoder.new_cache(64)
        decoder.forward(ids[:40], cache)
        copy = cache.copy(40)
        forms = cache.saved_forms()
        saved = {name: cache.saved(name).copy() for name in forms}
        goes_on(copy, other, theirs)
        goes_on(cache, ids, want)
        cache.truncate(cache.held_from(45))
        assert cache.length <= 45
        goes_on(cache, ids, want)
        restored = decoder.new_cache(64)
        restored.restore(40, forms, saved.__getitem__)
        goes_on(restored, other, theirs)
