"""Policies: by hand, against each other, and on real routing where that is at hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.weights.eviction import DecayedFrequency, LeastRecentlyUsed, OfflineOptimum, hit_rate


def ids(*values):
    return np.array(values, np.int32)


def test_decay_by_hand():
    policy = DecayedFrequency(2, 3, decay=0.5)
    policy.used(0, ids(0, 1), ids(1, 1), 1)
    policy.used(0, ids(1), ids(1), 1)
    assert policy.scores.tolist() == [[0.5, 1.5, 0], [0, 0, 0]]
    policy.used(1, ids(2), ids(1), 1)
    assert policy.ranks(np.array([0, 1, 5])).tolist() == [0.5, 1.5, 1.0], "a layer decays only when it is passed"


def test_sequences_that_decode_together_forget_no_faster_than_one():
    alone, eight = DecayedFrequency(1, 3), DecayedFrequency(1, 3)
    for step in range(30):
        alone.used(0, ids(step % 2), ids(1), 1)
        eight.used(0, ids(step % 2), ids(8), 8)
    assert np.allclose(eight.scores, 8 * alone.scores)


@pytest.mark.parametrize("tokens", [9, 40])
def test_a_prompt_counts_as_its_tokens_would_one_by_one(tokens):
    together, single = DecayedFrequency(1, 2), DecayedFrequency(1, 2)
    together.used(0, ids(0), ids(tokens), tokens)
    for _ in range(tokens):
        single.used(0, ids(0), ids(1), 1)
    assert np.allclose(together.scores, single.scores, rtol=1e-4)


TRACES = st.lists(
    st.lists(st.sets(st.integers(0, 5), min_size=2, max_size=2), min_size=3, max_size=3), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(TRACES, st.integers(2, 18))
def test_nobody_beats_the_optimum(trace, slots):
    best = hit_rate(OfflineOptimum(3, 6, trace), trace, slots, 6)
    for policy in (DecayedFrequency(3, 6), LeastRecentlyUsed(3, 6)):
        assert hit_rate(policy, trace, slots, 6) <= best + 1e-9


def test_all_slots_means_each_misses_once():
    trace = [[{0, 1}, {2, 3}]] * 10
    assert hit_rate(LeastRecentlyUsed(2, 4), trace, 8, 4) == pytest.approx(0.9)
    assert hit_rate(LeastRecentlyUsed(2, 4), trace, 8, 4, skip_tokens=1) == 1.0


def test_least_recently_used_fails_on_a_cycle_that_the_optimum_does_not():
    trace = [[{0, 1}], [{2, 3}], [{4, 5}]] * 10
    assert hit_rate(LeastRecentlyUsed(1, 6), trace, 4, 6) == 0.0
    assert hit_rate(OfflineOptimum(1, 6, trace), trace, 4, 6) > 0.4


@pytest.mark.parametrize(("share", "decayed", "lru", "best"), [(0.1, 31, 0, 51), (0.2, 47, 44, 68), (0.4, 70, 65, 85)])
def test_real_routing(shared_data, share, decayed, lru, best):
    """OLMoE's recorded routing, 200 tokens from a cold start: per cent of hits as docs/streaming.md gives them."""
    trace = json.loads((shared_data / "data/traces/olmoe-1b-7b.json").read_text())
    slots = int(share * 16 * 64)
    policies = DecayedFrequency(16, 64), LeastRecentlyUsed(16, 64), OfflineOptimum(16, 64, trace)
    assert [int(100 * hit_rate(policy, trace, slots, 64) + 0.5) for policy in policies] == [decayed, lru, best]
