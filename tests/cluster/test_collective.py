"""What every way of working together must do, whatever carries the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from edgerun.cluster.collective import MOST_MESSAGE_BYTES, Collective
from edgerun.cluster.local import local_group
from edgerun.errors import LostPeerError, UsageError
from tests.cluster.groups import on_all

Make = Callable[[int], Sequence[Collective]]
WAYS: dict[str, Make] = {"local": local_group}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Groups, closed at the end."""
    made: list[Sequence[Collective]] = []

    def build(size: int) -> Sequence[Collective]:
        made.append(WAYS[request.param](size))
        return made[-1]

    yield build
    for group in made:
        for each in group:
            each.close()


def _numbers(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    """Of very different sizes, so that another order of summation gives other bits."""
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 5, shape)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sums_are_those_of_ascending_ranks_on_every_rank(make: Make, size: int) -> None:
    shape = (3, 257)
    expected = _numbers(0, shape)
    for rank in range(1, size):
        expected = expected + _numbers(rank, shape)

    def act(group: Collective) -> np.ndarray:
        x = _numbers(group.rank, shape)
        for _ in range(3):  # buffers are used again
            x = _numbers(group.rank, shape)
            group.all_reduce(x)
        return x

    for got in on_all(make(size), act):
        np.testing.assert_array_equal(got, expected)


def test_the_head_gives_and_gathers(make: Make) -> None:
    def act(group: Collective) -> tuple[np.ndarray, bytes, list[np.ndarray]]:
        x = _numbers(group.rank, (2, 5))
        group.broadcast(x)
        said = group.announce(b"step 1" if group.rank == 0 else b"")
        gathered = group.gather(np.full(group.rank + 1, group.rank, np.float32))
        return x, said, [part.copy() for part in gathered]

    results = on_all(make(3), act)
    for x, said, _ in results:
        np.testing.assert_array_equal(x, _numbers(0, (2, 5)))
        assert said == b"step 1"
    assert [part.tolist() for part in results[0][2]] == [[0], [1, 1], [2, 2, 2]]
    assert results[1][2] == results[2][2] == []


def test_who_leaves_is_missed(make: Make) -> None:
    def act(group: Collective) -> str:
        if group.rank == 2:
            group.close()
            group.close()
            return ""
        with pytest.raises(LostPeerError) as caught:
            for _ in range(2):
                group.all_reduce(np.zeros(4, np.float32))
        group.close()  # so that who waits for this one is not left waiting
        return str(caught.value)

    assert any("rank 2" in message for message in on_all(make(3), act))


def test_what_makes_no_sense_is_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="0 ranks"):
        make(0)
    group = make(2)
    with pytest.raises(UsageError, match="at most"):
        group[0].announce(bytes(MOST_MESSAGE_BYTES + 1))
