"""What the caller may ask of a generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgerun.options import SAMPLING, checked_keywords, refused

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]
"""`f(ids, logits) -> logits`: ids (n,) of the prompt and of what was generated, logits (vocab,) of the next
token, which may be changed in place. Runs before everything else that changes logits."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Defaults are llama.cpp's; so is the order: logit bias,
    penalties, top-k, typical, top-p, min-p, temperature.

    max_tokens: at most this many; None: until the model ends or the context is full.
    temperature: 0 takes the likeliest token and ignores what else there is.
    top_k: keep the k likeliest (0: all). top_p: keep the fewest that sum to p (1: all).
    min_p: keep those at least min_p times as likely as the likeliest (0: all).
    typical_p: keep the locally typical that sum to p (1: all).
    repeat_penalty: divide positive logits of recent tokens by it, multiply negative ones (1: off).
    frequency_penalty, presence_penalty: subtract, per occurrence and once, from logits of recent tokens.
    repeat_last_n: how many tokens are recent, prompt included (0: none, -1: all).
    logit_bias: token id -> added to its logit (-inf forbids it).
    seed: the same seed, prompt and options give the same tokens; None: another at each call.
    stop: strings that end the text; they do not appear in it.
    ignore_eos: the model may not end by itself.
    logprobs: report each token's log-probability and this many alternatives; None: do not.
    processors: callables that see and change the logits, see `LogitsProcessor`.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        for name, kind in SAMPLING.items():
            object.__setattr__(self, name, kind.check(name, getattr(self, name)))

    def with_options(self, options: Mapping[str, Any]) -> SamplingParams:
        """These parameters with some replaced. UsageError for a name that is none of them."""
        if not isinstance(options, Mapping):
            raise refused("options", "a mapping of sampling options", options)
        checked_keywords(options, SAMPLING, "sampling option")
        return replace(self, **options) if options else self

    @property
    def has_penalties(self) -> bool:
        """Whether recent tokens change the logits."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: int | None
    processors: Sequence[LogitsProcessor]
