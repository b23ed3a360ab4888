"""Choosing a token where numbers are at the ends of what floats can say."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerun.engine import SamplingParams
from edgerun.engine.chooser import Chooser
from edgerun.engine.sampler import softmax
from edgerun.errors import EdgerunError, UsageError
from engine.fakes import FakeDecoder, fake_engine

F32 = NDArray[np.float32]
BIGGEST = float(np.finfo(np.float32).max)
NEAR_ZERO = [0.0, 5e-324, 1e-320, 1e-308, 1e-50, 1e-45, 1e-40, 1.1e-38, 1e-30, 1e-9]
ENDS = [0.0, 5e-324, 1e-45, 1e-40, 1e-9, 0.5, 1.0, 2.0, 1e9, 1e38, BIGGEST, 1e39, 1e308]
IDS = [3, 3, 5, 9]


@pytest.fixture(autouse=True)
def numbers_are_numbers() -> Iterator[None]:
    """An overflow or an invalid operation that nobody thought of is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def logits_of(seed: int, n: int = 500) -> F32:
    return (8 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@pytest.mark.parametrize("temperature", NEAR_ZERO)
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    for seed in range(20):
        logits = logits_of(seed)
        chooser = Chooser(SamplingParams(temperature=temperature, seed=seed, min_p=0, top_p=1, top_k=0), len(logits))
        assert chooser.next(logits.copy(), IDS).token_id == int(logits.argmax())


@given(
    temperature=st.sampled_from(ENDS),
    top_k=st.sampled_from([0, 1, 2, 40, 2**31, 2**63 - 1]),
    top_p=st.sampled_from([0.0, 5e-324, 1e-40, 0.5, 1 - 2**-53, 1.0]),
    min_p=st.sampled_from([0.0, 5e-324, 1e-40, 0.5, 1 - 2**-53, 1.0]),
    typical_p=st.sampled_from([0.0, 5e-324, 1e-40, 0.5, 1 - 2**-53, 1.0]),
    repeat=st.sampled_from(ENDS[1:]),
    frequency=st.sampled_from([*ENDS, *(-end for end in ENDS)]),
    presence=st.sampled_from([*ENDS, *(-end for end in ENDS)]),
    last_n=st.sampled_from([-1, 0, 1, 2**63 - 1]),
    bias=st.dictionaries(st.integers(0, 19), st.sampled_from([*ENDS, *(-end for end in ENDS), -math.inf]), max_size=12),
    scale=st.sampled_from([0.0, 1e-45, 1.0, 8.0, 1e30, BIGGEST / 8]),
    forbidden=st.integers(0, 19),
    seed=st.integers(0, 99),
)
@settings(max_examples=400, deadline=None)
def test_whatever_is_asked_a_possible_token_comes(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repeat: float,
    frequency: float,
    presence: float,
    last_n: int,
    bias: dict[int, float],
    scale: float,
    forbidden: int,
    seed: int,
) -> None:
    logits = (np.random.default_rng(seed).uniform(-1, 1, 20) * scale).astype(np.float32)
    logits[:forbidden] = -np.inf
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        repeat_last_n=last_n,
        logit_bias=bias,
        logprobs=3,
        seed=seed,
    )
    possible = {i for i in range(forbidden, 20) if bias.get(i) != -math.inf}
    if not possible:
        with pytest.raises(UsageError, match="forbidden"):
            Chooser(params, 20).next(logits.copy(), IDS)
        return
    choice = Chooser(params, 20).next(logits.copy(), IDS)
    assert choice.token_id in possible
    assert choice.logprob is not None and choice.logprob <= 1e-6
    assert not any(math.isnan(p) for _, p in choice.top)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"logit_bias": {1: 5}}, {"top_k": 1}, {"logprobs": 2}])
def test_a_model_that_computes_no_numbers(wrong: float, options: dict[str, Any]) -> None:
    logits = logits_of(1)
    logits[77] = wrong
    with pytest.raises(EdgerunError, match="damaged"):
        Chooser(SamplingParams(**options), len(logits)).next(logits, IDS)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_scores_and_embeddings_of_such_a_model(wrong: float) -> None:
    class Damaged(FakeDecoder):
        def row(self, ids: Any) -> F32:
            row = super().row(ids)
            row[3] = wrong
            return row

    engine = fake_engine(Damaged())
    for call in (lambda: engine.logits([1, 2]), lambda: engine.score("one"), lambda: engine.embed("one")):
        with pytest.raises(EdgerunError, match="damaged"):
            call()


def test_nothing_is_left_to_choose() -> None:
    forbidden = dict.fromkeys(range(20), -math.inf)
    with pytest.raises(UsageError, match="every token is forbidden"):
        Chooser(SamplingParams(logit_bias=forbidden), 20).next(logits_of(1, 20), IDS)
    with pytest.raises(EdgerunError, match="damaged"):
        Chooser(SamplingParams(), 20).next(np.full(20, -np.inf, np.float32), IDS)


@pytest.mark.parametrize(
    "answer",
    [None, "x", b"x", 5, [1, 2], object(), math.nan, np.zeros(3), np.full(20, "a"), np.full(20, 1j), np.full(20, None)]
    + [np.full(20, wrong) for wrong in (math.nan, math.inf, 1e300, -math.inf)],
    ids=lambda answer: str(answer)[:12],
)
def test_what_a_processor_may_not_give(answer: Any) -> None:
    params = SamplingParams(processors=[lambda ids, logits: answer], repeat_penalty=1.1)
    with pytest.raises(UsageError, match="processor|forbidden"):
        Chooser(params, 20).next(logits_of(1, 20), IDS)


def test_ordinary_temperatures_divide() -> None:
    logits = logits_of(2)
    for temperature in (0.1, 0.8, 1.0, 1.7):
        exact = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
        np.testing.assert_allclose(softmax(logits, temperature), exact / exact.sum(), rtol=1e-4, atol=1e-9)
