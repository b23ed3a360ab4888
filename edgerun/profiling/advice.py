"""What binds a run, and what to change next: from measured shares, in words that name the option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["disk", "cache", "processor", "memory", "noise"]

_STALLED = 0.25  # of a token's time: then it is waits that bind
_SLOW_DISK = 0.5  # of the disk's measured rate: a layer's few misses cannot keep it as busy as a measurement does
_NEAR = 0.6  # of the memory's rate: then nothing but fewer bytes helps
_FEW_CACHED = 0.9


@dataclass(frozen=True)
class Facts:
    """Of decoding, by measurement. stall_share: of a token's time spent waiting for weights; read_bytes: a token's;
    disk_reached, disk_rate: bytes/s in the run and of the disk alone; cached_share: of the experts or layers; wanted:
    (memory in bytes, predicted tokens/s) with more of it; near_limit: share of the memory's rate that products
    reach."""

    mode: str
    token_s: float
    stall_share: float
    read_bytes: float
    hit_rate: float
    disk_reached: float
    disk_rate: float
    cached_share: float
    near_limit: float
    threads: int
    cores: int
    noisy: bool
    floor_bytes: int = 0
    budget_bytes: int = 0
    wanted: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Advice:
    """What binds, why that is known, and what helps, the best first."""

    bound: Bound
    why: str
    what: tuple[str, ...]


def _option(n_bytes: int) -> str:
    """A size as the option takes it."""
    return f"{n_bytes >> 30}G" if n_bytes % (1 << 30) == 0 else f"{n_bytes >> 20}M"


def advise(facts: Facts) -> Advice:
    """In this order: waits for a disk that is slow or for a cache that is small, then computing."""
    more = tuple(
        f"`--memory {_option(n_bytes)}`: about {rate:.1f} tokens/s predicted" for n_bytes, rate in facts.wanted
    )
    smaller = "a smaller quantisation (`edgerun quantize`): fewer bytes a token, from disk and from memory alike"
    if facts.mode != "resident" and facts.stall_share > _STALLED:
        waits = f"{100 * facts.stall_share:.0f} % of a token's time is waiting for weights"
        waits += f", {facts.read_bytes / 1e6:.0f} MB a token"
        rates = (
            f"the disk gives {facts.disk_rate / 1e9:.2f} GB/s alone and gave {facts.disk_reached / 1e9:.2f} in the run"
        )
        if (
            facts.mode == "experts"
            and facts.hit_rate < _FEW_CACHED
            and facts.disk_reached > _SLOW_DISK * facts.disk_rate
        ):
            cached, hits = 100 * facts.cached_share, 100 * facts.hit_rate
            why = f"{waits}: only {cached:.0f} % of the experts are cached, {hits:.0f} % hits"
            return Advice("cache", f"{why}; {rates}", (*more, smaller, "`edgerun pack`: misses cost less packing"))
        if facts.disk_reached < _SLOW_DISK * facts.disk_rate:
            what = (
                "`edgerun pack MODEL`: larger reads, nothing to pack",
                "a look at who else uses the disk (iostat)",
                *more,
            )
            return Advice("disk", f"{waits}; {rates}: reads are slower than the disk", (*what, smaller))
        return Advice("disk", f"{waits}; {rates}: the disk itself is the limit", (*more, smaller, "a faster disk"))
    if facts.noisy:
        what = ("close what else runs, and measure again",)
        return Advice("noise", "others used the processors meanwhile: these figures are no result", what)
    if facts.near_limit > _NEAR:
        share = min(1.0, facts.near_limit)  # it was measured at another moment
        why = f"products read memory at {100 * share:.0f} % of the rate that it gives"
        return Advice(
            "memory", why, (smaller, "--draft lookup, or several sequences at once: one read for many tokens")
        )
    what = ("`edgerun doctor`: whether a faster set of instructions is there",)
    if facts.threads < facts.cores:
        what = (f"-t {facts.cores}: {facts.threads} of {facts.cores} cores compute", *what)
    why = f"nothing waits, and products reach {100 * facts.near_limit:.0f} % of the memory's rate: computing binds"
    return Advice("processor", why, (*what, "a type of weights that is cheaper to unpack (Q4_0, Q8_0)"))
