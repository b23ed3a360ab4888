"""Two halves that take turns: in what order, and what becomes of an error in one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from edgerun.errors import ReadError
from edgerun.models.halves import HalfSums, Turns, both, pieces


class Log:
    """Sums that note who asks for them, and end with an error at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.seen: list[str] = []
        self.fails_at = fails_at

    def all_reduce(self, x: np.ndarray) -> None:
        self.seen.append(f"sum {int(x[0])}")
        if len([each for each in self.seen if each.startswith("sum")]) == self.fails_at:
            raise ReadError("a rank cannot go on")

    def recorded(self, parts, units, out):
        raise AssertionError("nothing is recorded here")

    def add_units(self, parts, units, out):
        raise AssertionError("not asked for here")


def through(log: Log, stages: int, at: Callable[[int, int], None] = lambda half, stage: None) -> None:
    turns = Turns()
    computing = threading.Lock()

    def compute(half: int) -> None:
        sums = HalfSums(log, turns, half)
        for stage in range(stages):
            with computing:
                at(half, stage)
            sums.all_reduce(np.array([10 * stage + half], np.float32))

    both(turns, compute)


def test_sums_come_by_turns_and_one_half_computes_at_a_time():
    log = Log()
    through(log, 5)
    assert log.seen == [f"sum {10 * stage + half}" for stage in range(5) for half in range(2)]


@pytest.mark.parametrize("half", (0, 1))
@pytest.mark.parametrize("stage", (0, 1, 4))
def test_an_error_of_one_half_ends_both_and_no_sum_follows_out_of_order(half, stage):
    def fail(at_half: int, at_stage: int) -> None:
        if (at_half, at_stage) == (half, stage):
            raise ReadError("no weights")

    log = Log()
    with pytest.raises(ReadError, match="no weights"):
        through(log, 5, fail)
    expected = [f"sum {10 * s + h}" for s in range(5) for h in range(2)]
    assert log.seen == expected[: 2 * stage + half], "all before it, which other ranks wait for, and none after"


@pytest.mark.parametrize("fails_at", (1, 2, 7))
def test_a_sum_that_ends_the_pass_is_the_last(fails_at):
    log = Log(fails_at)
    with pytest.raises(ReadError, match="cannot go on"):
        through(log, 5)
    assert len(log.seen) == fails_at


def test_pieces_are_even_in_number():
    for rows in (128, 129, 200, 256, 300, 512, 513, 1024, 1500, 3600):
        found = pieces(rows)
        assert len(found) % 2 == 0 and found[0].start == 0 and found[-1].stop == rows
        assert all(0 < part.stop - part.start <= 256 for part in found)
