"""Predicted speed: what more memory, a faster disk or a faster processor must do to it; kept rates survive damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgerun.errors import FormatError
from edgerun.planning.rates import Rates, load_rates, measure_disk, measure_kernels, save_rates
from edgerun.planning.speed import predict_speed, token_s
from tests.planning.test_memory import GIB, LLAMA_7B, OLMOE, SIZES, plan

RATES = Rates(25e9, 300e9, 1e9, 1 << 20)


def speed(model, budget, rates=RATES, **more):
    return predict_speed(*model, plan(model, budget), SIZES, rates, **more)


@pytest.mark.parametrize("model", [OLMOE, LLAMA_7B], ids=["olmoe", "llama-7b"])
def test_more_memory_is_never_slower(model):
    rates = [speed(model, budget * GIB // 4).decode_tok_s for budget in range(6, 32)]
    assert rates == sorted(rates)
    assert rates[-1] > 3 * rates[0]


def test_the_law():
    small = speed(OLMOE, 2 * GIB)
    assert small.decode_tok_s < 1e9 / small.read_bytes_per_token, "reading binds"
    assert speed(OLMOE, 2 * GIB, replace(RATES, disk_bytes_per_s=2e9)).decode_tok_s > 1.5 * small.decode_tok_s
    assert speed(OLMOE, 2 * GIB, replace(RATES, decode_bytes_per_s=50e9)).decode_tok_s < 1.2 * small.decode_tok_s
    whole = speed(OLMOE, 8 * GIB)
    assert (whole.hit_rate, whole.read_bytes_per_token, whole.read_s_per_token) == (1.0, 0.0, 0.0)
    every = speed(OLMOE, 2 * GIB, hit_rate=1.0).decode_tok_s
    assert 0.7 * whole.decode_tok_s < every < whole.decode_tok_s, "the cache costs a little even when it has all"


def test_misses_come_layer_by_layer():
    """Four layers of one expert that is missing every other time: computing takes 1 s a layer, reading 3 s."""
    assert token_s(4.0, 6.0, 0.5, 4, 1) == pytest.approx(4 * (0.5 * 1 + 0.5 * (3 + 0.2 * 1)))
    assert token_s(4.0, 0.0, 1.0, 4, 1) == 4.0, "nothing is missing"
    assert token_s(1.0, 6.0, 0.5, 4, 0) == pytest.approx(6 + 0.2 * 1), "in order: the disk never waits"
    for hits in (0.1, 0.5, 0.9, 0.99):
        for compute, read in ((1.0, 0.1), (1.0, 1.0), (1.0, 10.0)):
            takes = token_s(compute, read, hits, 16, 8)
            assert max(compute, read) <= takes < compute + read
            assert token_s(compute, read, hits, 16, 1) >= takes * 0.9999, (
                "the more experts, the more even is what is missing"
            )


def test_what_is_read_is_packed_by_the_same_cores():
    some, none = (speed(OLMOE, 2 * GIB, hit_rate=rate) for rate in (0.5, 1.0))
    packing = some.compute_s_per_token - none.compute_s_per_token
    assert packing == pytest.approx(some.read_bytes_per_token / (0.2 * RATES.decode_bytes_per_s))


def test_bytes_by_hand():
    expert = 3 * 2048 * 1024 * 18 / 32
    got = speed(OLMOE, 2 * GIB, hit_rate=0.75).read_bytes_per_token
    assert got == pytest.approx(16 * 8 * 0.25 * expert)
    layers = plan(LLAMA_7B, 2 * GIB)
    layer = (4 * 4096 * 4096 + 3 * 4096 * 11008) * 18 / 32
    assert speed(LLAMA_7B, 2 * GIB).read_bytes_per_token == pytest.approx((32 - layers.pinned) * layer)


def test_measured_here(tmp_path, kernels):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    assert measure_disk(path, 1 << 16) > 1e5
    with pytest.raises(FormatError, match="too small"):
        measure_disk(path, 1 << 20)
    if kernels.name != "reference":
        decode, prompt = measure_kernels(kernels)
        assert decode > 1e7
        assert prompt > decode


def test_kept_rates(tmp_path):
    path = tmp_path / "a" / "rates.json"
    assert load_rates(path) is None
    save_rates(path, RATES)
    assert load_rates(path) == RATES
    for bad in ("", "{}", "[]", "3", '{"disk_piece_bytes": 5}', path.read_text().replace("25", "-25")):
        path.write_text(bad)
        assert load_rates(path) is None
