"""A sequence is copied, cut back and put into files, and goes on to the bit: of models with recurrent or latent layers,
with windows and with layers that read the keys and values of others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.formats.gguf import open_gguf
from edgerun.kv import KvLedger
from edgerun.models import Decoder, holdings, load_spec
from edgerun.weights import ResidentStore
from tests.kv.holding import restore
from tests.models.instances import INSTANCES, VOCAB, open_instance, write

NAMES = ("qwen35", "falcon-h1", "lfm2", "gemma3n", "deepseek2", "gptoss")


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
        restore(restored, 40, forms, saved.__getitem__)
        goes_on(restored, other, theirs)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("ssm.group_count", 3, "4 heads of 3 groups"),
        ("ssm.inner_size", 33, "inner size of 33"),
        ("ssm.state_size", 16, "a state size of 16"),
        ("ssm.state_size", 0, "state_size is 0"),
        ("ssm.conv_kernel", 1, "conv_kernel is 1"),
        ("ssm.conv_kernel", 5, "ssm_conv1d.weight is"),
        ("ssm.time_step_rank", 1 << 20, "time_step_rank is 1048576"),
        ("attention.recurrent_layers", np.array([True, False]), "has 2 truths for 4 layers"),
        ("attention.recurrent_layers", np.array([1, 1, 1, 0], np.float32), "must be an array of truths"),
        ("attention.recurrent_layers", np.array([True] * 4), "blk.3.attn_output.weight, blk.3.attn_q"),
    ],
)
def test_impossible_numbers(key, value, text, tmp_path):
    path = write(dataclasses.replace(INSTANCES["qwen35"], lies={key: value}), tmp_path / "m.gguf")
    with open_gguf(path) as gguf, pytest.raises(FormatError, match=text):
        load_spec(gguf)


@pytest.mark.parametrize("name", ["qwen35", "nemotron_h", "lfm2moe", "granitehybrid", "falcon-h1", "llama", "gemma3"])
def test_a_sequence_holds_what_was_planned(name, directory, kernels):
    """Within 3 %, a prompt with an answer after it; and states no more of a longer text."""
    gguf, spec = open_instance(name, directory)
    with gguf:
        ledger = KvLedger(None)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels, kv_ledger=ledger)
        states = []
        for positions in (64, 512, 1 << 14, 1 << 15):
            cache, most = decoder.new_cache(positions), 0
            cache.mark(positions - 17)  # as `Context.begin` does: one token before the end of a prompt, and room for it
            cache.reserve(positions - 16, 256)
            while cache.length < positions:
                tokens = max(1, min(256, positions - 16 - cache.length))
                cache.reserve(tokens)
                cache.advance(tokens)
                most = max(most, ledger.held_bytes)
            pages = holdings.kv_bytes(spec, positions, 256)
            assert most == pytest.approx(pages + holdings.state_bytes(spec, positions), rel=0.03)
            states.append(most - pages)
            cache.release()
        assert (states[2] > 0) == (name not in ("llama", "gemma3"))
        assert states[0] <= states[1] <= states[2] and states[2] == pytest.approx(states[3], rel=0.03)


@pytest.mark.filterwarnings("error")
def test_a_shared_expert_may_be_shut(directory, kernels):
    gguf, spec = open_instance("qwen35moe", directory)
    with gguf:
        store = ResidentStore(gguf, spec, kernels)
        for layer in range(spec.n_layers):
            store.vectors(layer)["ffn_gate_inp_shexp"][:] *= 1e4
        decoder = Decoder(spec, store, kernels)
        assert np.isfinite(decoder.forward(list(range(20)), decoder.new_cache(32), logits="all")).all()
