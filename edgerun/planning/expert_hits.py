"""How often an expert cache will have what a token asks for: once it is full, and in an answer that begins without it.

A cache is empty when a model is used for the first time, and what it holds grows only by what misses. So a first answer
reads more than a later one: with half of OLMoE's experts cached 31 % of 24 tokens' uses miss, and 20 % later on (its
recorded routing, on average over ten beginnings). What is said here of such beginnings, OLMoE's and Qwen3's with 7 to
75 % of the experts cached, is 0.85 to 0.99 of the misses of 24 tokens, and 0.92 to 1.13 of those of tokens 16 to 48.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pow

import numpy as np

from edgerun.models import ModelSpec

# Hits of decayed frequency against the share of experts that are cached, on recorded routing after a third of the
# trace: OLMoE-1B-7B, and Qwen3-30B-A3B, whose short trace hides what is beyond 97 %. Nothing in a header tells how
# unevenly a model chooses. Qwen balances its experts' load over whole batches from Qwen3 on, not over each text as
# others do (Qiu et al. 2025), so that a text keeps to fewer of them
_CACHED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.44, 0.57, 0.7, 0.85, 1.0)
_HITS = {
    "OLMoE": (0.0, 0.2, 0.315, 0.475, 0.6, 0.745, 0.855, 0.935, 0.985, 1.0),
    "Qwen3": (0.0, 0.41, 0.61, 0.83, 0.94, 0.97, 0.975, 0.98, 0.99, 1.0),
}
_MOST_FILLING = 4096  # tokens after which a cache is as full as it gets

# Tokens of one text choose alike: n of them need as many experts as n ** 0.6 would that chose by chance (the recorded
# routing of OLMoE, 8 to 200 tokens, and of Qwen3-30B-A3B, 8 to 90, is like n ** 0.55 to n ** 0.75)
ALIKE = 0.6


@dataclass(frozen=True)
class AnswerHits:
    """Shares of uses, on average over an answer's tokens. later: over the last two thirds of them, which is what
    benchmarks count (`profiling.bench`). new, later_new: those that miss while the cache is not full yet, and so are
    read to memory that was not used before."""

    all: float
    later: float
    new: float = 0.0
    later_new: float = 0.0


def answer_hits(first: Sequence[float], full: float, decode_tokens: int, filling: int = 0) -> AnswerHits:
    """Of an answer whose first tokens have these hits each, and all others those of a full cache. filling: tokens after
    which it is full."""

    def mean(skip: int) -> float:
        counted = first[skip:decode_tokens]
        others = max(0, decode_tokens - max(skip, len(first)))
        return (sum(counted) + others * full) / max(1, len(counted) + others)

    def new(skip: int) -> float:
        return sum(1 - hits for hits in first[skip : min(filling, decode_tokens)]) / max(1, decode_tokens - skip)

    if not decode_tokens:
        return AnswerHits(full, full)
    skip = decode_tokens // 3
    return AnswerHits(mean(0), mean(skip), new(0), new(skip))


def filling_hits(
    spec: ModelSpec, cached_share: float, prompt_tokens: int, decode_tokens: int, *, warm: bool = False
) -> AnswerHits:
    """Of the tokens that are decoded after a prompt. What the cache holds grows by what misses, until it is full; a
    prompt fills it by all that it needs. warm: earlier runs have filled it."""
    used = spec.n_experts_used / spec.n_experts
    share = cached_share if warm else min(cached_share, 1 - pow(1 - used, pow(prompt_tokens, ALIKE)))
    first: list[float] = []
    while share < cached_share and len(first) < min(decode_tokens, _MOST_FILLING):
        first.append(full_hits(spec, share))
        share = min(cached_share, share + used * (1 - first[-1]))
    return answer_hits(first, full_hits(spec, share), decode_tokens, len(first))


def full_hits(spec: ModelSpec, cached_share: float) -> float:
    """Of a cache that holds so much of the experts."""
    return float(np.interp(cached_share, _CACHED, _HITS[assumed_routing(spec)]))


def assumed_routing(spec: ModelSpec) -> str:
    """The model whose recorded routing stands for that of this one, of which none is known."""
    return "Qwen3" if spec.architecture.startswith("qwen3") else "OLMoE"
