"""When a group is better off without one of its devices."""

from __future__ import annotations

import pytest

from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.slow import Judge, slow_rank

PARTS = (0.25, 0.25, 0.25, 0.25)


def times(*own_s: float, passes: int = 10, wire_s: float = 0.02) -> list[RankTimes]:
    """Of ranks that computed so long a pass: whoever is quicker waits for the slowest."""
    whole_s = max(own_s) + wire_s
    return [RankTimes(passes, passes * whole_s, passes * (whole_s - each), 0.0, 50) for each in own_s]


def test_the_slowest_is_named_where_the_others_are_faster_alone() -> None:
    found = slow_rank(PARTS, times(0.1, 0.1, 0.4, 0.1))
    assert found is not None and found.rank == 2
    assert found.with_s == pytest.approx(0.42)
    assert found.without_s == pytest.approx(0.1 * 4 / 3 + 0.02)
    assert slow_rank(PARTS, times(0.1, 0.1, 0.13, 0.1)) is None  # a third more for each of them is as long
    assert slow_rank(PARTS, times(0.4, 0.1, 0.1, 0.1)) is None  # nobody can be without the head
    assert slow_rank((0.6, 0.1, 0.3), times(0.1, 0.4, 0.1)) is not None
    assert slow_rank((0.1, 0.8, 0.1), times(0.1, 0.4, 0.1)) is None  # it has most of the model
    assert slow_rank((0.0, 1.0), times(0.1, 0.4)) is None


def test_a_moment_is_not_enough() -> None:
    judge, slow, even = Judge(PARTS), times(0.1, 0.1, 0.4, 0.1), times(*[0.2] * 4)
    for said in (slow, slow, even, even, slow, slow):  # twenty passes are one turn
        judge.hear(said)
        assert judge.slow is None
    judge.hear(slow)
    judge.hear(slow)
    assert judge.slow is not None and judge.slow.rank == 2
    judge.hear(even)
    judge.hear(even)
    assert judge.slow is None
