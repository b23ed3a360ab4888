"""A prompt's rows in two halves that take turns: while one half's sums travel between devices, the other half is
computed.

Each half goes through the layers on a thread of its own. One of them computes at a time, until it comes to a sum; then
the other one does, and the first waits for its sum. Both have the same sums, so that these come by turns, too, in an
order that all ranks know (`reductions`), and a half sees what the half before it has written of the same layer. No bit
depends on it: a row's do not depend on how many are beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter

from edgerun.errors import EdgerunError
from edgerun.kernels.interface import F32
from edgerun.models.chunks import CHUNK
from edgerun.models.ranks import RecordedSum, Sums
from edgerun.models.spec import ModelSpec, Units

_LEAST_ROWS = 128  # of a pass that is halved: products of few rows read each weight for too little
_RANKS = 2  # of more each has less to compute meanwhile, and sends more messages (docs/cluster.md has the figures)
_MULTIPLE = 16  # rows of a tile of products


def are_halved(spec: ModelSpec, rows: int, ranks: int) -> bool:
    """Whether so many rows go through the layers of so many ranks in halves. (Experts take all rows of a pass at once,
    and several streams, and what a layer ends with, are not in halves.)"""
    is_dense = all(numbers.n_experts == 0 for numbers in spec.whole)
    return (
        ranks == _RANKS and rows >= _LEAST_ROWS and is_dense and spec.streams == 1 and not spec.family.per_layer_inputs
    )


def pieces(rows: int) -> list[slice]:
    """The pieces of rows that are halved, of CHUNK rows at most: the first of each two belongs to the first half."""
    count = 2 * -(-rows // (2 * CHUNK))
    edges = [-(-rows * index // (count * _MULTIPLE)) * _MULTIPLE for index in range(count)]
    return [slice(low, high) for low, high in pairwise([*edges, rows])]


class OtherHalfFailedError(EdgerunError):
    """A half cannot go on since the other one failed."""


@dataclass(eq=False)
class Turns:
    """Whose turn it is to compute, and whose to sum. idle_s: in which nobody computed."""

    idle_s: float = 0.0
    _compute: tuple[threading.Lock, threading.Lock] = field(default_factory=lambda: _locks())
    _sum: tuple[threading.Lock, threading.Lock] = field(default_factory=lambda: _locks())
    _failed: bool = False
    _free_since: float = field(default_factory=perf_counter)

    def begin(self, half: int) -> None:
        """Wait until it is this half's turn to compute. OtherHalfFailedError."""
        self._compute[half].acquire()
        self.idle_s += perf_counter() - self._free_since
        self._check()

    def end(self, half: int) -> None:
        """The other half may compute."""
        self._free_since = perf_counter()
        self._compute[1 - half].release()

    def sum(self, half: int, act: Callable[[], None]) -> None:
        """Between `begin` and `end`: `act`, when all sums before it are done, while the other half may compute."""
        self.end(half)
        self._sum[half].acquire()
        self._check()
        act()
        self._sum[1 - half].release()
        self.begin(half)

    def fail(self, half: int) -> None:
        """This half is over: the other one must not wait for it."""
        self._failed = True
        for each in (self._compute[1 - half], self._sum[1 - half]):
            if each.locked():
                each.release()

    def _check(self) -> None:
        if self._failed:
            raise OtherHalfFailedError("the other half of a prompt's rows failed")


def _locks() -> tuple[threading.Lock, threading.Lock]:
    """Of the two halves, of which the first begins."""
    first, second = threading.Lock(), threading.Lock()
    second.acquire()
    return first, second


class HalfSums:
    """`Sums` for one half."""

    def __init__(self, sums: Sums, turns: Turns, half: int) -> None:
        self._sums, self._turns, self._half = sums, turns, half

    def all_reduce(self, x: F32) -> None:
        self._turns.sum(self._half, lambda: self._sums.all_reduce(x))

    def recorded(self, parts: Sequence[F32], units: Units | None, out: F32) -> RecordedSum:
        return self._sums.recorded(parts, units, out)  # nothing is recorded of a prompt

    def add_units(self, parts: Sequence[F32], units: Units, out: F32) -> None:
        self._turns.sum(self._half, lambda: self._sums.add_units(parts, units, out))


def both(turns: Turns, compute: Callable[[int], None]) -> None:
    """`compute` of both halves, 0 and 1. Raises what one of them raises, when both have ended."""
    with ThreadPoolExecutor(1, "second half") as threads:
        second = threads.submit(_run, turns, compute, 1)
        try:
            _run(turns, compute, 0)
        except OtherHalfFailedError:
            second.result()  # raises why
            raise
        second.result()


def _run(turns: Turns, compute: Callable[[int], None], half: int) -> None:
    try:
        turns.begin(half)
        compute(half)
        turns.end(half)
    except BaseException:
        turns.fail(half)
        raise
