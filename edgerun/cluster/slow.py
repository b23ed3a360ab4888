"""Whether a group would be faster without one of its devices, from what its ranks did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgerun.cluster.rank_times import RankTimes, split

_PASSES = 20  # that are looked at together, and
_BUSY_S = 3.0  # so much time at least
_TURNS = 2  # in a row must say the same: it may have been a moment
_CLEARLY = 0.9  # of a pass's time, that it must take without the device


@dataclass(frozen=True)
class Slow:
    """A rank that the others wait for: a pass takes `with_s`, and would take `without_s`."""

    rank: int
    with_s: float
    without_s: float


class Judge:
    """Of a group whose ranks have these parts of the model. `slow`: whom it would be better without, if anybody; never
    the head."""

    def __init__(self, parts: Sequence[float]) -> None:
        self.slow: Slow | None = None
        self._parts = parts
        self._since: list[RankTimes] = []
        self._last: list[Slow] = []  # what turns said, as long as it is of one rank

    def hear(self, times: Sequence[RankTimes]) -> None:
        """What all ranks did since the last time, in their order."""
        self._since = [a + b for a, b in zip(self._since, times, strict=True)] if self._since else list(times)
        head = self._since[0]
        if head.passes < _PASSES or head.busy_s < _BUSY_S:
            return
        found = slow_rank(self._parts, self._since)
        self._since = []
        if found is None or (self._last and self._last[-1].rank != found.rank):
            self._last = []
        if found is not None:
            self._last.append(found)
        self.slow = found if len(self._last) >= _TURNS else None


def slow_rank(parts: Sequence[float], times: Sequence[RankTimes]) -> Slow | None:
    """The slowest rank, if the others, each as fast as it was, would make a pass faster alone. Sums are taken to cost
    them what they cost now."""
    passes = times[0].passes
    found = split(times)
    own_s = [(each.compute_s + each.disk_s) / passes for each in found]
    rank = own_s.index(max(own_s))
    others = [(part, took_s) for i, (part, took_s) in enumerate(zip(parts, own_s, strict=True)) if i != rank and part]
    if rank == 0 or not others or not all(took_s > 0 for _, took_s in others):
        return None
    wire_s = found[0].wire_s / passes
    with_s = own_s[rank] + wire_s
    without_s = 1 / sum(part / took_s for part, took_s in others) + wire_s
    return Slow(rank, with_s, without_s) if without_s < _CLEARLY * with_s else None
