"""The seam between the head's model and the devices that take part: who is there, and a group of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edgerun.cluster.collective import Collective
from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.shard_file import ShardSource
from edgerun.cluster.shares import Ability

CutWithout = Callable[[int, Callable[[], None]], Sequence[ShardSource]]
"""The shards of those who are left when the device at this place among `Assembly.abilities` is lost, in their order;
the head makes its own meanwhile, and calls the function, which may raise, between pieces. Empty where nobody needs
one."""


class Assembly(Protocol):
    """The devices besides the head, which are ranks 1 and on of its groups. One group at a time."""

    def abilities(self) -> list[Ability]:
        """Of the devices that are there now, in the order of their ranks."""
        ...

    def names(self) -> list[str]:
        """Of the same, for people."""
        ...

    def regain(self, wait_s: float) -> None:
        """Before the next group, when there is none: those that were lost in the last one may be there again within
        `wait_s` (a cable that was loose) and take part in it then, as if nothing had been."""
        ...

    def has_news(self) -> bool:
        """Whether there is a device that could take part and does not. Asked before every prompt: quick."""
        ...

    def begin(self, shards: Sequence[ShardSource], details: bytes) -> Collective:
        """A group of the head and all that are there, each with its shard: the head's place in it. details: for
        `worker.work`. LostPeerError when one has gone meanwhile; then they are others."""
        ...

    def prepare(self, cut: CutWithout, is_busy: Callable[[], bool]) -> None:
        """In the background, slowly while `is_busy`, have devices keep what they would need if one of them were lost.
        It ends with the group."""
        ...

    def worked(self, times: Sequence[RankTimes]) -> None:
        """What the ranks of the group, the head first, did since this was last called."""
        ...

    def leave_out(self, place: int) -> None:
        """The device at this place among `abilities` takes part no more: the others are faster without it."""
        ...

    def end(self) -> None:
        """The group, if there is one, is over; its devices may be asked again. Harmless when repeated."""
        ...

    def close(self) -> None:
        """Let all devices go."""
        ...
