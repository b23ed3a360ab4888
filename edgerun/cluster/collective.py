"""What the ranks of a group do together: the seam between who computes and who carries numbers.

A rank is one device's place in the group, counted from 0; rank 0 is the head, which has the text, the prompt and the
sampler. All ranks make the same calls in the same order. Sums are taken over ranks in ascending order, so that every
rank ends with the same bits, whatever the way that the numbers took.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.units import Folding
from edgerun.kernels.eighths import Rounding

if TYPE_CHECKING:  # it is made of what is here
    from edgerun.cluster.sum_scripts import RecordedSums

F32 = NDArray[np.float32]

HEAD = 0  # the rank that has the text


class Collective(Protocol):
    """One rank's part in what the group does together. Not for several threads at once.

    Every method blocks until this rank's part is done and raises LostPeerError when another rank is gone, after which
    the group is of no more use: close it and make another."""

    @property
    def rank(self) -> int:
        """This device's place, 0 to size - 1."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    @property
    def recorded(self) -> RecordedSums | None:
        """Its sums as launches of a recording; None: only Python can make them."""

    def all_reduce(self, x: F32) -> None:
        """Put the sum of all ranks' `x` (of one shape, C-contiguous) in its place."""

    def reduce_long(self, x: F32, ends: bool) -> bool:
        """As `all_reduce`, of x of so many numbers as a prompt's sums have; and whether any rank `ends`."""

    def round_with(self, rounding: Rounding) -> None:
        """Who rounds and adds long arrays from now on, where the wire is not exact: to the same bits as before."""

    def wait_with(self, threads: int) -> None:
        """So many threads of this rank compute, and wait for sums, from now on."""

    def fold(self, nodes: F32, folding: Folding, out: F32) -> None:
        """out (n,) = what all ranks' partial sums make together, by the additions that `folding` says; nodes (its count
        of this rank, n), which may be overwritten: this rank's. Exactly, whatever the wire."""

    def broadcast(self, x: F32) -> None:
        """Put the head's `x` (of one shape, C-contiguous) in place of all others'."""

    def scatter(self, parts: Sequence[F32], out: F32) -> None:
        """Put the head's `parts[rank]`, C-contiguous and of the size of that rank's `out`, in every other rank's `out`.
        What others give is ignored. Exactly, whatever the wire."""

    def gather(self, x: F32) -> list[F32]:
        """On the head all ranks' `x`, flat and in the order of ranks, of whatever lengths; it is lent until the next
        call. Elsewhere nothing."""

    def announce(self, message: bytes) -> bytes:
        """The head's message, of at most `MOST_MESSAGE_BYTES`, on every rank; what others give is ignored."""

    def close(self) -> None:
        """Leave the group: those who wait for this rank get LostPeerError. Harmless when repeated."""


MOST_MESSAGE_BYTES = 1 << 20
