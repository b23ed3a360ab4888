"""What may be asked, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgerun.engine import SamplingParams
from edgerun.errors import UsageError


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"typical_p": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": True},
        {"max_tokens": -1},
        {"seed": -1},
        {"repeat_penalty": 0},
        {"repeat_last_n": -2},
        {"logprobs": -1},
        {"stop": ["a", ""]},
        {"stop": [3]},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"logit_bias": {-1: 0}},
        {"processors": ["no"]},
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        SamplingParams(**options)


def test_unknown_options_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"temprature.*temperature"):
        SamplingParams().with_options({"temprature": 1})


def test_one_stop_string_and_json_keys() -> None:
    params = SamplingParams(stop="###", logit_bias={"5": -math.inf})  # type: ignore[dict-item]
    assert params.stop == ("###",)
    assert params.logit_bias == {5: -math.inf}


def test_options_replace_only_what_they_name() -> None:
    params = SamplingParams(temperature=0.5, top_k=3).with_options({"top_k": 9})
    assert (params.temperature, params.top_k) == (0.5, 9)
