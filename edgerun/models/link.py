"""The seam for several devices: each has its share of every layer (`share.py`), and what they computed is summed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgerun.kernels.interface import F32

if TYPE_CHECKING:
    from edgerun.models.passes import Pass


class Link(Protocol):
    """The other ranks that compute the same rows of the same layers at the same time."""

    def all_reduce(self, x: F32) -> None:
        """Put the sum of all ranks' x (of one shape, C-contiguous) in its place: the same bits on every rank. Raises
        what ends the pass on all of them (Cancelled, a rank's error), LostPeerError when one is gone."""
        ...


class HeadLink(Link, Protocol):
    """Of the rank that has the text: it says what the others compute."""

    def run(self, task: Pass, x: F32) -> None:
        """The others begin a pass, with x (T, d) before its first layer. Nothing else may be asked of them before
        `logits`, or what ended the pass was raised."""
        ...

    def logits(self, mine: F32) -> F32:
        """All ranks' (n, vocabulary), side by side, of mine. The pass is over."""
        ...
