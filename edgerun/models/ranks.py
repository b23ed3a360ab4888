"""The seam for several devices: each has its share of every layer (`share.py`), and what they computed is summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edgerun.events import SpanSink
from edgerun.kernels.interface import F32
from edgerun.kernels.recording import Recording
from edgerun.models.places import Pass
from edgerun.models.spec import Units


class RecordedSum(Protocol):
    """A sum that a launch makes in place of Python."""

    def lay_out(self, recording: Recording) -> bool:
        """Record it without making it, as one launch; False, and nothing, where it must be Python that sums."""
        ...

    def is_left(self) -> bool:
        """Whether the program stopped because this sum is not made, or ends the pass."""
        ...

    def finish(self) -> bool:
        """Make what is left of it; False: it had not begun, and was not made. Raises as `Ranks.all_reduce`."""
        ...


class Sums(Protocol):
    """What the other ranks are for who computes a block."""

    def all_reduce(self, x: F32) -> None:
        """Put the sum of all ranks' x (of one shape, C-contiguous) in its place: the same bits on every rank. Raises
        what ends the pass on all of them (Cancelled, a rank's error), LostPeerError when one is gone."""
        ...

    def recorded(self, parts: Sequence[F32], units: Units | None, out: F32) -> RecordedSum:
        """The same as `add_units` of these arrays, or, without units, as `all_reduce` of `out`, which is the one part
        then: for a recording."""
        ...

    def add_units(self, parts: Sequence[F32], units: Units, out: F32) -> None:
        """out (rows, d) = the sum of all ranks' units, the same bits whoever has which of them. parts: this rank's
        results, (rows, d) each, in the order of `units.held`; they are overwritten. Raises as `all_reduce`."""
        ...


class Ranks(Sums, Protocol):
    """The other ranks that compute the same rows of the same layers at the same time."""

    @property
    def size(self) -> int:
        """How many there are, this one counted."""
        ...

    def overlapped(self, compute: Callable[[], float]) -> None:
        """`compute`, beside which sums are made; it returns for how many seconds nothing was computed: that is what was
        waited for them."""
        ...


class HeadRanks(Ranks, Protocol):
    """Of the rank that has the text: it says what the others compute."""

    def watch(self, watcher: SpanSink | None) -> None:
        """Tell of every sum, how long this rank waited for it and what it sent (lane "cluster")."""
        ...

    def run(self, task: Pass, x: F32, compute: Callable[[], F32]) -> F32:
        """The others begin a pass with x (T, d) before its first layer, while `compute` does this rank's part of it and
        returns its logits (n, its part of the vocabulary); returns all of them, (n, vocab). What ends the pass on
        another rank, or what `compute` raises, is raised when all ranks have ended it."""
        ...
