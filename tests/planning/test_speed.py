"""Predicted speed: what more memory, a faster disk or a faster processor must do to it; kept rates survive damage."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgerun.api.routing import replayed
from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.layout import PackedSizes
from edgerun.planning import disk_probe
from edgerun.planning.costs import pass_operations
from edgerun.planning.disk_probe import DiskProbe, measure_disk
from edgerun.planning.expert_hits import AnswerHits, answer_hits, filling_hits
from edgerun.planning.rates import (
    AttentionRates,
    ProductRates,
    Rates,
    best_of,
    load_rates,
    measure_new_memory,
    measure_products,
    product_name,
    save_rates,
)
from edgerun.planning.speed import operation_s, predict_speed, token_s
from tests.planning.test_memory import GIB, LLAMA_7B, OLMOE, SIZES, header, plan

Q4_0 = ProductRates(25e9, 300e9)
RATES = Rates({"Q4_0": Q4_0}, 1e9, 1 << 20)


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
    assert speed(OLMOE, 2 * GIB, replace(RATES, disk_bytes_per_s=2e9)).decode_tok_s > 1.4 * small.decode_tok_s
    assert (
        speed(OLMOE, 2 * GIB, replace(RATES, products={"Q4_0": replace(Q4_0, decode_bytes_per_s=50e9)})).decode_tok_s
        < 1.2 * small.decode_tok_s
    )
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


def test_readers_pack_what_they_read():
    def read_bytes_per_s(product_bytes_per_s):
        rates = replace(RATES, products={"Q4_0": replace(Q4_0, decode_bytes_per_s=product_bytes_per_s)})
        found = speed(LLAMA_7B, 2 * GIB, rates)
        return found.read_bytes_per_token / found.read_s_per_token

    assert read_bytes_per_s(1e15) == pytest.approx(RATES.disk_bytes_per_s), "the disk alone, where packing is for free"
    assert 0.7e9 < read_bytes_per_s(25e9) < 0.97e9, "three readers, of which some pack"
    assert read_bytes_per_s(25e6) == pytest.approx(3 * 0.048 * 25e6, rel=0.01), "and all of them, where it takes long"


def test_the_last_expert_is_yet_to_be_packed():
    """One layer of one expert that is missing every other time: 3 s of the disk, 1 s of packing; of 8 that all miss, by
    three readers; and packing takes a part of the cores that compute."""
    assert token_s(1.0, 1.5, 0.5, 1, 1, pack_s=0.5) == pytest.approx(0.5 * 1.0 + 0.5 * (4.0 + 0.2 * 1.5))
    assert token_s(1.0, 16.0, 0.0, 1, 8, pack_s=8.0) == pytest.approx(17.0 + 0.2 * 5.0)
    assert token_s(1.0, 8.0, 0.0, 1, 8, pack_s=80.0) == pytest.approx(41.0 + 0.2 * 33.0), "each reader has up to three"
    plain, packed = (speed(OLMOE, 2 * GIB, hit_rate=0.9, packed=each) for each in (False, True))
    assert packed.pack_s_per_token == 0 and plain.pack_s_per_token == plain.read_bytes_per_token / (0.048 * 25e9)
    assert packed.decode_tok_s > 1.1 * plain.decode_tok_s


def test_a_cache_that_fills_misses_more_than_a_full_one():
    _, spec = OLMOE
    full = filling_hits(spec, 0.5, 256, 60).all
    assert full == pytest.approx(0.796, abs=1e-3), "a prompt has filled it"
    assert filling_hits(spec, 0.5, 0, 60, warm=True) == AnswerHits(full, full)
    assert filling_hits(spec, 0.5, 256, 0).all == pytest.approx(full)
    rising = [filling_hits(spec, 0.5, 0, tokens) for tokens in (10, 24, 6000)]
    assert rising[0].all < rising[0].later < rising[1].all < rising[1].later < full, "later tokens find more"
    assert rising[1].later < rising[2].all < rising[2].later == pytest.approx(full)
    short, long = filling_hits(spec, 0.5, 0, 4), rising[2]
    assert (short.new, short.later_new) == (pytest.approx(1 - short.all), pytest.approx(1 - short.later)), "all is new"
    assert 0 < long.new < 1 - long.all and long.later_new == 0, "once it is full, none"


def test_the_hits_of_an_answer_by_hand():
    """The last two thirds are counted from token 2 of 6 on; what is not known is as in a full cache."""
    assert answer_hits([0.0, 0.2, 0.4, 0.6], 1.0, 6) == AnswerHits(pytest.approx(3.2 / 6), pytest.approx(3.0 / 4))
    assert answer_hits([0.0, 0.2, 0.4, 0.6], 1.0, 3) == AnswerHits(pytest.approx(0.2), pytest.approx(0.3))
    assert answer_hits([0.0, 0.2, 0.4, 0.6], 1.0, 6, filling=3) == AnswerHits(
        pytest.approx(3.2 / 6), pytest.approx(3.0 / 4), new=pytest.approx(2.4 / 6), later_new=pytest.approx(0.6 / 4)
    )
    assert answer_hits([], 0.5, 6) == answer_hits([0.1], 0.5, 0) == AnswerHits(0.5, 0.5)


def test_recorded_routing_is_replayed_from_an_empty_cache():
    """Eight experts of each layer again and again, which a cache has from the second token on; then eight others."""
    _, spec = OLMOE
    routing = [[list(range(low, low + 8))] * spec.n_layers for low in [0] * 8 + [8]]

    def hits(slots=1000, prompt=0, decode=9, warm=False):
        return replayed(routing, slots, spec, prompt_tokens=prompt, decode_tokens=decode, warm=warm)

    new = pytest.approx(2 / 9)
    never_full = AnswerHits(pytest.approx(7 / 9), pytest.approx(5 / 6), new, pytest.approx(1 / 6))
    assert hits() == (pytest.approx(5 / 6), never_full)
    by_the_first = replace(never_full, new=pytest.approx(1 / 9), later_new=0.0)
    assert hits(slots=8 * spec.n_layers)[1] == by_the_first, "which fills it"
    assert hits(decode=3)[1] == AnswerHits(pytest.approx(2 / 3), 1.0, pytest.approx(1 / 3))
    assert hits(prompt=2, decode=4)[1] == AnswerHits(1.0, 1.0), "the prompt has filled it"
    assert hits(prompt=9)[1] == hits(warm=True)[1] == AnswerHits(pytest.approx(5 / 6), pytest.approx(5 / 6))


def test_memory_that_is_new_takes_a_reader_s_time():
    """Half of the uses are read to it; a cache that is full needs none."""
    rates = replace(RATES, new_memory_bytes_per_s=0.5e9)
    free, full, fills = (
        speed(OLMOE, 2 * GIB, each, hit_rate=0.5, new_rate=new, packed=True)
        for each, new in ((RATES, 0.5), (rates, 0.0), (rates, 0.5))
    )
    assert free == full and full.pack_s_per_token == 0
    assert fills.pack_s_per_token == pytest.approx(fills.read_bytes_per_token / 0.5e9)
    assert fills.decode_tok_s < full.decode_tok_s
    assert 1e7 < measure_new_memory() < 1e12


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


def test_a_disk_is_probed_in_bursts_that_lie_apart(tmp_path, monkeypatch):
    """Those that nobody asked for are read at the end, after a pause each; no more of a slow disk, or a small file."""
    path, pauses = tmp_path / "file", []
    path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(disk_probe.time, "sleep", pauses.append)
    monkeypatch.setattr(disk_probe, "_BURST_BYTES", 1 << 18)
    monkeypatch.setattr(disk_probe, "_BURSTS", 3)
    with DiskProbe(path, 1 << 16) as probe:
        probe.burst()
        probe.burst()
        seen = probe.seen_bytes_per_s
        assert probe.bytes_per_s() > 1e5 and probe.seen_bytes_per_s != seen
        assert len(pauses) == 1 and probe.bytes_per_s() == probe.seen_bytes_per_s
    monkeypatch.setattr(disk_probe, "_BURST_BYTES", 1 << 20)
    with DiskProbe(path, 1 << 16) as probe:
        assert probe.bytes_per_s() > 1e5 and len(pauses) == 2, "all of the file at once"
    monkeypatch.setattr(disk_probe, "_LONGEST_S", 0.0)
    with DiskProbe(path, 1 << 16) as probe:
        probe.read(1 << 18)
        assert probe.bytes_per_s() == probe.seen_bytes_per_s and len(pauses) == 2


@pytest.mark.parametrize("type", [GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q2_K], ids=lambda type: type.name)
def test_products_of_every_type_are_measured(kernels, type):
    rates = measure_products(kernels, type, 256, PackedSizes(kernels.row_group))
    assert 1e5 < rates.decode_bytes_per_s < 1e13
    assert 1e6 < rates.prompt_ops_per_s < 1e16


@pytest.fixture
def no_q5_0(monkeypatch):
    """Every type has kernels; here Q5_0 has none."""
    monkeypatch.delitem(FORMATS, GgmlType.Q5_0)


@pytest.mark.usefixtures("no_q5_0")
def test_weights_without_kernels_take_their_own_time():
    """By hand: one layer's time at each type's rate, the head's beside it."""
    sizes, rates = PackedSizes(8), {"Q4_0": Q4_0, "Q5_0 x 512": ProductRates(1e8, 1e10)}
    rates["Q5_0 x 1024"] = ProductRates(5e7, 1e10)
    assert {product_name(GgmlType.Q5_0, cols, sizes) for cols in (512, 1024)} <= set(rates)
    catalog, spec = header("llama", 4, 512, 1024, 8, 8, 3000, type=GgmlType.Q5_0)
    got = predict_speed(catalog, spec, plan((catalog, spec), 8 * GIB), sizes, Rates(rates, 1e9, 1 << 20))
    layer_512, layer_1024 = 4 * 512 * 512 + 2 * 512 * 1024, 512 * 1024  # weights
    token_s = (22 / 32) * ((4 * layer_512 + 3000 * 512) / 1e8 + 4 * layer_1024 / 5e7)
    assert got.decode_tok_s == pytest.approx(1 / token_s)
    prompt_s = 2 * 4 * (layer_512 + layer_1024) / 1e10 * 256 + 3000 * 512 * (22 / 32) / 1e8
    assert got.first_token_s == pytest.approx(prompt_s)


@pytest.mark.usefixtures("no_q5_0")
def test_experts_without_kernels_are_unpacked_once_a_chunk():
    rates = Rates({"Q5_0 x 512": ProductRates(1e8, 1e12)}, 1e9, 1 << 20)
    catalog, spec = header("olmoe", 2, 512, 512, 8, 8, 3000, experts=64, used=8, type=GgmlType.Q5_0)
    got = predict_speed(catalog, spec, plan((catalog, spec), 8 * GIB), SIZES, rates)
    every_expert_s = 2 * 64 * 3 * 512 * 512 * (22 / 32) / 1e8
    assert every_expert_s < got.first_token_s < 1.3 * every_expert_s


def test_weights_that_stay_in_the_last_cache_come_from_there():
    """Of a cache of 300: all of a model of 90, nothing of one of 200, a part in between."""
    rates = Rates({"Q4_0": replace(Q4_0, cached_bytes_per_s=50e9)}, 1e9, 1 << 20, cache_bytes=300)
    found = [rates.for_weights(size).products["Q4_0"].decode_bytes_per_s for size in (90, 100, 120, 140, 150, 200)]
    assert found[0] == found[1] == pytest.approx(50e9) and found[4] == found[5] == 25e9
    assert found == sorted(found, reverse=True) and 25e9 < found[3] < found[2] < 50e9
    assert replace(rates, cache_bytes=0).for_weights(90).products["Q4_0"] == rates.products["Q4_0"]


def test_few_tokens_an_expert_and_narrow_matrices_cost_more():
    with_attention = replace(RATES, attention=AttentionRates(1e13, 1e17), launch_s=1e-12)
    wide, narrow = (header("llama", 4, d, 2 * d, 8, 8, 64) for d in (4096, 256))

    def operations_per_s(model):
        flops = sum(each.flops for each in pass_operations(*model, SIZES, rows=256) if each.kind == "product")
        products = [each for each in pass_operations(*model, SIZES, rows=256) if each.kind == "product"]
        return flops / sum(operation_s(each, 256, with_attention, SIZES) for each in products)

    assert operations_per_s(narrow) < 0.8 * operations_per_s(wide)
    experts = header("olmoe", 4, 4096, 4096, 8, 8, 64, experts=64, used=8)
    assert operations_per_s(experts) < 0.85 * operations_per_s(wide), "32 tokens each"


def test_of_two_measurements_the_better_counts():
    slow = replace(RATES, products={"Q4_0": ProductRates(1e9, 400e9, 2e9)}, launch_s=9e-6, others_share=0.9)
    both = best_of(slow, replace(RATES, attention=AttentionRates(1, 2)))
    assert both.products == {"Q4_0": ProductRates(25e9, 400e9, 2e9)} and both.attention == AttentionRates(1, 2)
    assert both.launch_s == RATES.launch_s and not both.were_disturbed and slow.were_disturbed
    assert best_of(slow, slow) == slow


def test_kept_rates(tmp_path):
    path = tmp_path / "a" / "rates.json"
    assert load_rates(path) is None
    save_rates(path, RATES)
    assert load_rates(path) == RATES
    whole = Rates({"Q4_0": replace(Q4_0, cached_bytes_per_s=3e9)}, 1e9, 4, AttentionRates(1, 2), 3e-6, 9, 4e9, 0.5)
    save_rates(tmp_path / "whole", whole)
    assert load_rates(tmp_path / "whole") == whole
    before = json.loads(path.read_text())
    before.pop("cache_bytes")
    for bad in (
        json.dumps(before),  # of a version that measured otherwise
        "",
        "{}",
        "[]",
        "3",
        '{"disk_piece_bytes": 5}',
        path.read_text().replace("25", "-25"),
        path.read_text().replace("Q4_0", "Q4_0 x").replace("2500", "x"),
    ):
        path.write_text(bad)
        assert load_rates(path) is None


def test_a_pack_file_spares_the_packing():
    plain, packed = (speed(OLMOE, 2 * GIB, hit_rate=0.5, packed=each) for each in (False, True))
    assert packed.read_s_per_token == pytest.approx(packed.read_bytes_per_token / RATES.disk_bytes_per_s)
    assert packed.decode_tok_s > plain.decode_tok_s and packed.first_token_s < plain.first_token_s


def test_an_empty_cache_reads_all_that_a_prompt_needs():
    cold, warm = (speed(OLMOE, 3 * GIB, packed=True, warm=each) for each in (False, True))
    experts = sum(info.n_bytes for layer in OLMOE[0].layers for info in layer.experts.values())
    assert 0.95 * experts / RATES.disk_bytes_per_s < cold.first_token_s
    assert warm.first_token_s < 0.8 * cold.first_token_s


def test_the_further_guesses_reach_the_more_even_is_reading():
    """Two layers of one expert that is missing every other time, read as one: none, one or both miss."""
    assert token_s(2.0, 3.0, 0.5, 2, 1, 2) == pytest.approx(0.25 * 2 + 0.5 * (3 + 0.2 * 2) + 0.25 * (6 + 0.2 * 2))
    assert token_s(2.0, 2.0, 0.5, 2, 1, 2) < token_s(2.0, 2.0, 0.5, 2, 1)
