"""The same sums on any number of devices: what a sum goes over is cut into units that do not depend on who is there.

A product whose columns are divided gives one result for each unit of its columns (some heads, some columns of the
feed-forward). All units' results are added along one binary tree, halves first, so that the bits of a sum follow from
the units alone. A rank has units that lie side by side: it adds those that are whole branches of the tree and sends one
partial sum for each of the largest; whoever adds up goes on from there. Equal shares of 2, 4 or 8 devices are whole
branches, and send what they would send anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from edgerun.errors import FormatError

Step = tuple[int, int]  # (into, other): the second is added to the first

_MOST_UNITS = 1 << 10


@dataclass(frozen=True)
class Folding:
    """How partial sums of all ranks become one: `counts` of each rank, one at least, which stand in the order of ranks;
    `steps`, after which the first is the sum."""

    counts: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def nodes(self) -> int:
        """Partial sums of all ranks."""
        return sum(self.counts)


@dataclass(frozen=True)
class RankUnits:
    """A rank's part of a sum over units: `steps` among its own units, and of each of its partial sums what is added
    `last`, or the one unit that it is; none where it has no unit, then it sends zeros."""

    steps: tuple[Step, ...]
    last: tuple[tuple[int, int | None], ...]
    folding: Folding


def in_order(size: int) -> Folding:
    """One partial sum of each of `size` ranks, added in the order of ranks."""
    return Folding((1,) * size, tuple((0, rank) for rank in range(1, size)))


def edges_of(count: int, parts: Sequence[float]) -> tuple[int, ...]:
    """Where each rank's units begin, and `count` at last: near `parts` of all. Halves and quarters of the units are
    rounded as the tree halves them. What is one unit is the head's: it may be recurrent states."""
    if count == 1:
        return (0, *(1,) * len(parts))
    total, edges, sum_ = sum(parts), [0], 0.0
    for part in parts:
        sum_ += part
        edges.append(min(count, max(edges[-1], int(count * sum_ / total + 0.5 + 1e-9))))
    return (*edges[:-1], count)


@lru_cache(maxsize=256)
def rank_units(edges: tuple[int, ...], rank: int) -> RankUnits:
    """What a rank does with its units, whose ranges are as of `edges_of`. FormatError for edges that are none."""
    ascends = all(low <= high for low, high in pairwise(edges))
    if not 0 <= rank < len(edges) - 1 or edges[0] != 0 or not ascends or not 0 < edges[-1] <= _MOST_UNITS:
        raise FormatError(f"{edges} are no ranges of units for rank {rank}")
    count = edges[-1]
    held = [_branches(0, count, low, high) for low, high in pairwise(edges)]
    numbers: dict[int, int] = {}  # the first unit of a branch -> its partial sum's number among all ranks'
    zeros, nodes = [], 0
    for branches in held:
        if not branches:
            zeros.append(nodes)
        numbers |= {low: nodes + i for i, (low, _) in enumerate(branches)}
        nodes += max(1, len(branches))
    whole = frozenset(branch for branches in held for branch in branches)
    steps = [(numbers[low], numbers[middle]) for low, middle in _steps(0, count, whole)]
    # Who has nothing sends zeros all the same: with them a rank says whether it goes on.
    steps += [(0, numbers[0]) if at == 0 else (numbers[0], at) for at in reversed(zeros)]
    first = edges[rank]
    own = [[(low - first, middle - first) for low, middle in _steps(*each, frozenset())] for each in held[rank]]
    return RankUnits(
        tuple(step for steps in own for step in steps[:-1]),
        tuple(steps[-1] if steps else (low - first, None) for steps, (low, _) in zip(own, held[rank], strict=True)),
        Folding(tuple(max(1, len(branches)) for branches in held), tuple(steps)),
    )


def _branches(low: int, high: int, first: int, end: int) -> list[tuple[int, int]]:
    """The largest branches of the tree over units low .. high - 1 that lie within first .. end - 1."""
    if first >= high or end <= low or first >= end:
        return []
    if first <= low and high <= end:
        return [(low, high)]
    middle = _middle(low, high)
    return _branches(low, middle, first, end) + _branches(middle, high, first, end)


def _steps(low: int, high: int, whole: frozenset[tuple[int, int]]) -> list[Step]:
    """The additions of the tree over units low .. high - 1, by the first units of what is added; none within branches
    that are `whole` already."""
    if high - low == 1 or (low, high) in whole:
        return []
    middle = _middle(low, high)
    return [*_steps(low, middle, whole), *_steps(middle, high, whole), (low, middle)]


def _middle(low: int, high: int) -> int:
    return (low + high + 1) // 2
