"""Which expert leaves the cache when another must come in: policies, and what they would have reached on a trace.

An expert is known by its key, layer * experts + id. Policies keep no list of what is cached: the cache asks them to
rank what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

DECAY = 0.95  # a token; on recorded routing of OLMoE and Qwen3-30B as good as any of 0.8 .. 0.98, best for large caches
TOGETHER = 8  # so many rows at most are a token each of sequences that decode together


class Eviction(Protocol):
    """A policy."""

    def used(self, layer: int, ids: I32, uses: I32, tokens: int) -> None:
        """A layer was passed by `tokens` tokens; `uses` (n,) of them chose each of `ids` (n,)."""
        ...

    def ranks(self, keys: I64) -> F32:
        """What to keep: (n,) f32, the lowest leaves first."""
        ...


class DecayedFrequency:
    """Uses counted with a decay of 0.95 a token. Layer-aware: a layer decays when it is passed, so that an expert
    whose layer is still to come in this token counts for more than one whose layer has just gone by.

    Sequences that decode together forget no faster than one alone: a token of each of eight is one token's time, not
    eight (on OLMoE's recorded routing, 410 slots, eight places of the text: 28.0 misses a token in place of 29.3).

    `scores` (layers, experts) f32 may be given, from an earlier run.
    """

    def __init__(self, layers: int, experts: int, scores: F32 | None = None, decay: float = DECAY) -> None:
        self.scores = np.zeros((layers, experts), np.float32) if scores is None else scores.astype(np.float32)
        self._decay = decay

    def used(self, layer: int, ids: I32, uses: I32, tokens: int) -> None:
        row = self.scores[layer]
        if tokens <= TOGETHER:
            row *= self._decay
            row[ids] += uses
            return
        kept = self._decay**tokens
        row *= kept
        row[ids] += uses * np.float32((1 - kept) / (1 - self._decay) / tokens)  # as if they had come evenly

    def ranks(self, keys: I64) -> F32:
        return self.scores.reshape(-1)[keys]


class LeastRecentlyUsed:
    """The classic."""

    def __init__(self, layers: int, experts: int) -> None:
        self._last = np.zeros((layers, experts), np.float32)
        self._now = 0.0

    def used(self, layer: int, ids: I32, uses: I32, tokens: int) -> None:
        self._now += 1.0
        self._last[layer, ids] = self._now

    def ranks(self, keys: I64) -> F32:
        return self._last.reshape(-1)[keys]


class OfflineOptimum:
    """Belady's: what is needed again last leaves first. It must know the future: `trace`[token][layer] = ids."""

    def __init__(self, layers: int, experts: int, trace: Sequence[Sequence[Sequence[int]]]) -> None:
        self._experts = experts
        self._when: list[list[int]] = [[] for _ in range(layers * experts)]
        time = 0
        for token in trace:
            for layer, ids in enumerate(token):
                for i in ids:
                    self._when[layer * experts + i].append(time)
                time += 1
        for times in self._when:
            times.reverse()

    def used(self, layer: int, ids: I32, uses: I32, tokens: int) -> None:
        for i in ids.tolist():
            times = self._when[layer * self._experts + i]
            if times:
                times.pop()

    def ranks(self, keys: I64) -> F32:
        return np.array([-self._when[key][-1] if self._when[key] else -np.inf for key in keys.tolist()], np.float32)


def hit_rate(
    policy: Eviction, trace: Sequence[Sequence[Sequence[int]]], slots: int, experts: int, skip_tokens: int = 0
) -> float:
    """Share of uses that a cache of `slots` experts would have had, beginning empty; the first `skip_tokens` tokens
    fill it and are not counted."""
    return mean_hits(hits_by_token(policy, trace, slots, experts)[skip_tokens:])


def mean_hits(tokens: Sequence[tuple[int, int]]) -> float:
    """Of what `hits_by_token` gives: the share over all of them."""
    hits, total = (sum(counts) for counts in zip(*tokens, strict=True)) if tokens else (0, 0)
    return hits / total if total else 0.0


def tokens_that_fill(tokens: Sequence[tuple[int, int]], slots: int) -> int:
    """After how many of what `hits_by_token` gives such a cache is full; all of them where it never is."""
    missed = accumulate(uses - hits for hits, uses in tokens)
    return next((count for count, so_far in enumerate(missed, 1) if so_far >= slots), len(tokens))


def hits_by_token(
    policy: Eviction, trace: Sequence[Sequence[Sequence[int]]], slots: int, experts: int
) -> list[tuple[int, int]]:
    """(hits, uses) of each token in a cache of `slots` experts that was empty before the first."""
    keys = np.full(slots, -1, np.int64)
    place: dict[int, int] = {}
    found = []
    for layers in trace:
        hits = total = 0
        for layer, chosen in enumerate(layers):
            ids = np.array(sorted(chosen), np.int32)
            wanted = (layer * experts + ids.astype(np.int64)).tolist()
            missing = [key for key in wanted if key not in place]
            hits += len(wanted) - len(missing)
            total += len(wanted)
            policy.used(layer, ids, np.ones(len(ids), np.int32), 1)
            for key in missing:
                held = np.isin(keys, wanted)
                rank = np.where(keys < 0, -np.inf, policy.ranks(np.maximum(keys, 0)))
                rank[held] = np.inf
                slot = int(np.argmin(rank))
                place.pop(int(keys[slot]), None)
                keys[slot] = key
                place[key] = slot
        found.append((hits, total))
    return found
