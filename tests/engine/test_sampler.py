"""Sampler functions against references that sort everything."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edgerun.engine import sampler

F32 = NDArray[np.float32]
# Coarse values, so that ties are common.
LOGITS = arrays(np.float32, st.integers(1, 60), elements=st.integers(-40, 40).map(lambda v: v / 4))


RECORDED = json.loads((Path(__file__).parent / "llamacpp_sampler.json").read_text())["cases"]


@pytest.mark.parametrize("case", RECORDED, ids=range(len(RECORDED)))
def test_what_llama_cpp_keeps(case: dict[str, Any]) -> None:
    logits, p = np.array(case["logits"], np.float32), case["p"]
    assert sampler.keep_top_k(logits, case["k"]).tolist() == case["top_k"]
    assert sampler.keep_top_p(logits, p).tolist() == case["top_p"]
    assert sampler.keep_min_p(logits, p).tolist() == case["min_p"]
    assert sampler.keep_typical(logits, p).tolist() == case["typical"]
    sampler.penalise(logits, np.array(case["recent"], np.int32), 1.3, 0.4, 0.2)
    np.testing.assert_allclose(logits, case["penalised"], atol=1e-4)


def by_size(logits: F32) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def probabilities(logits: F32) -> NDArray[np.float64]:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


@given(LOGITS, st.integers(0, 70))
def test_top_k(logits: F32, k: int) -> None:
    expected = sorted(by_size(logits)[: k or None])
    assert sampler.keep_top_k(logits, k).tolist() == expected


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 40, 255, 256, 257]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_top_k_of_a_large_vocabulary(seed: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(5000).astype(np.float32)
    if ties:
        logits = np.round(logits)
    logits[rng.integers(0, 5000, 2000)] = -np.inf
    assert sampler.keep_top_k(logits, k).tolist() == sorted(by_size(logits)[:k])


@given(LOGITS, st.floats(0, 1))
def test_top_p_is_the_smallest_set_that_reaches_p(logits: F32, p: float) -> None:
    kept = sampler.keep_top_p(logits, p)
    order, probs = by_size(logits), probabilities(logits)
    assert kept.tolist() == sorted(order[: len(kept)])
    total = probs[kept].sum()
    assert total >= p - 1e-6 or len(kept) == len(logits)
    if len(kept) > 1:
        assert total - probs[order[len(kept) - 1]] < p + 1e-6


@pytest.mark.parametrize("spread", [0.5, 2, 6])
@pytest.mark.parametrize("p", [0.5, 0.95, 0.9999])
def test_top_p_of_a_large_vocabulary(spread: float, p: float) -> None:
    """However many it looks at first: what sorting everything would give, with ties, also where nearly all are kept."""
    logits = (np.random.default_rng(0).standard_normal(20_000) * spread).astype(np.float32).round(1)
    order = np.argsort(-logits, kind="stable")
    reached = int(np.searchsorted(np.cumsum(sampler.softmax(logits)[order]), p))
    assert sampler.keep_top_p(logits, p).tolist() == sorted(order[: reached + 1].tolist())


def test_a_number_next_to_one_picks_the_last_that_is_possible() -> None:
    assert sampler.pick(np.array([0.0, 0.7, 0.3, 0.0]), float(np.nextafter(1, 0))) == 2
    assert sampler.pick(np.array([0.0, 5e-324, 0.0]), float(np.nextafter(1, 0))) == 1  # u * total is the total


@given(LOGITS, st.floats(0, 1))
def test_min_p(logits: F32, p: float) -> None:
    kept = set(sampler.keep_min_p(logits, p).tolist())
    relative = probabilities(logits) / probabilities(logits).max()
    assert all(i in kept for i in np.flatnonzero(relative > p * (1 + 1e-5)))
    assert not any(i in kept for i in np.flatnonzero(relative < p * (1 - 1e-5)))


@given(LOGITS, st.floats(0.01, 0.99))
def test_typical(logits: F32, p: float) -> None:
    kept = sampler.keep_typical(logits, p)
    probs = probabilities(logits)
    shift = np.abs(-np.log(probs) - -(probs * np.log(probs)).sum())
    outside = np.setdiff1d(np.arange(len(logits)), kept)
    if len(outside):
        assert shift[kept].max() <= shift[outside].min() + 1e-5
        assert probs[kept].sum() > p - 1e-6
    if len(kept) > 1:
        assert probs[kept].sum() - probs[kept[np.argmax(shift[kept])]] <= p + probs.max() * 1e-5 + 1e-6


def test_cumulative_filters_look_beyond_their_first_guess() -> None:
    logits = np.zeros(10_000, np.float32)
    kept = sampler.keep_top_p(logits, 0.5)
    assert len(kept) in (5000, 5001)  # a rounding apart
    assert kept.tolist() == list(range(len(kept)))
    assert len(sampler.keep_typical(logits, 0.25)) in (2500, 2501)
    assert len(sampler.keep_top_p(logits, 1.0)) == 10_000


def test_penalties_are_llama_cpps() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0], np.float32)
    sampler.penalise(logits, np.array([0, 1, 0], np.int32), 2.0, 0.5, 0.25)
    # 2 / 2 - (2 * 0.5 + 0.25);  -2 * 2 - (0.5 + 0.25)
    np.testing.assert_allclose(logits, [-0.25, -4.75, 1.0, 0.0])


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_pick_inverts_the_cumulative_distribution(logits: F32, u: float) -> None:
    probs = sampler.softmax(logits)
    place = sampler.pick(probs, u)
    before = probs[:place].sum()
    assert before <= u + 1e-9
    assert u < before + probs[place] + 1e-9
    assert probs[place] > 0


def test_pick_never_takes_what_is_impossible() -> None:
    probs = np.array([0.0, 0.5, 0.5, 0.0])
    assert sampler.pick(probs, 0.0) == 1
    assert sampler.pick(probs, 0.9999999999999999) == 2


@given(LOGITS)
def test_softmax_and_logprobs(logits: F32) -> None:
    np.testing.assert_allclose(sampler.softmax(logits), probabilities(logits), rtol=1e-5, atol=1e-12)
    every = np.arange(len(logits))
    expected = logits - logits.max() - np.log(np.exp(logits.astype(np.float64) - logits.max()).sum())
    np.testing.assert_allclose(sampler.log_softmax_at(logits, every), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_choosing_from_150_000_tokens_is_fast(temperature: float) -> None:
    from edgerun.engine.chooser import Chooser
    from edgerun.engine.params import SamplingParams

    logits = np.random.default_rng(0).standard_normal(151_936).astype(np.float32)
    chooser = Chooser(SamplingParams(temperature=temperature, seed=1), len(logits))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        chooser.next(logits, [1, 2, 3])
        times.append(time.perf_counter() - start)
    # Aim 0.3 ms; the bound leaves room for a busy machine but not for a full sort (10 ms).
    assert min(times) < 0.002
