"""Devices that are threads of the test, and can be lost at any moment."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgerun.cluster.assembly import CutWithout
from edgerun.cluster.collective import F32, Collective
from edgerun.cluster.local import local_group
from edgerun.cluster.rank_times import RankTimes
from edgerun.cluster.shard_file import ShardSource
from edgerun.cluster.shares import Ability
from edgerun.cluster.units import Folding
from edgerun.cluster.worker import OpenShard, work
from edgerun.errors import LostPeerError
from edgerun.kernels.eighths import Rounding


class Mortal:
    """A rank's collective that leaves for good before its `lives`-th call."""

    recorded = None  # every sum is a call

    def __init__(self, inner: Collective) -> None:
        self._inner = inner
        self.lives = -1
        self.interrupts_after = -1  # so many calls the main thread is interrupted

    @property
    def rank(self) -> int:
        return self._inner.rank

    @property
    def size(self) -> int:
        return self._inner.size

    def all_reduce(self, x: F32) -> None:
        self._live()
        self._inner.all_reduce(x)

    def reduce_long(self, x: F32, ends: bool) -> bool:
        self._live()
        return self._inner.reduce_long(x, ends)

    def round_with(self, rounding: Rounding) -> None:
        self._inner.round_with(rounding)

    def wait_with(self, threads: int) -> None:
        self._inner.wait_with(threads)

    def fold(self, nodes: F32, folding: Folding, out: F32) -> None:
        self._live()
        self._inner.fold(nodes, folding, out)

    def broadcast(self, x: F32) -> None:
        self._live()
        self._inner.broadcast(x)

    def scatter(self, parts: Sequence[F32], out: F32) -> None:
        self._live()
        self._inner.scatter(parts, out)

    def gather(self, x: F32) -> list[F32]:
        self._live()
        return self._inner.gather(x)

    def announce(self, message: bytes) -> bytes:
        self._live()
        return self._inner.announce(message)

    def close(self) -> None:
        self._inner.close()

    def _live(self) -> None:
        if self.lives == 0:
            self._inner.close()
            raise LostPeerError("this device was unplugged")
        self.lives -= 1
        self.interrupts_after -= 1
        if self.interrupts_after == 0:
            _thread.interrupt_main()


class ThreadAssembly:
    """`Assembly` of devices with these rates. Shards lie in `folder`."""

    def __init__(self, rates: Sequence[float], folder: Path, open_with: OpenShard) -> None:
        self._rates = dict(enumerate(rates))
        self._folder = folder
        self._open_with = open_with
        self._there = list(self._rates)
        self._in_group: list[int] = []
        self.ranks: list[Mortal] = []
        self.groups = 0
        self.spares: list[list[str]] = []  # digests of the shards without each device
        self.begun: list[list[str]] = []  # and of those of each group
        self.times: list[Sequence[RankTimes]] = []
        self.errors: list[BaseException] = []
        # What happens in a group's first moments, by its number (from 1): "asked" who is there, "regained" who was lost
        # (only where the head would have to cut), "given" shards, "begun"
        self.events: dict[tuple[int, str], Callable[[], None]] = {}
        self._threads: list[threading.Thread] = []

    def abilities(self) -> list[Ability]:
        self._now("asked", self.groups + 1)
        return [Ability(self._rates[each], 1 << 40) for each in self._there]

    def names(self) -> list[str]:
        return [f"device {each}" for each in self._there]

    def regain(self, wait_s: float) -> None:
        self._now("regained", self.groups + 1)

    def has_news(self) -> bool:
        return bool(set(self._there) - set(self._in_group))

    def begin(self, shards: Sequence[ShardSource], details: bytes) -> Collective:
        self.groups += 1
        self.begun.append([shard.digest for shard in shards])
        there = list(self._there)
        self._now("given", self.groups)
        if len(shards) != len(set(there) & set(self._there)):
            raise LostPeerError("a device was lost before the group was there")
        self._in_group = there
        head, *others = local_group(1 + len(there))
        self.ranks = [Mortal(each) for each in others]
        for rank, shard in zip(self.ranks, shards, strict=True):
            path = self._folder / f"{shard.digest}.gguf"
            if not path.exists():
                with path.open("wb") as file:
                    for at in range(0, shard.n_bytes, 10_007):
                        file.write(shard.read(at, min(10_007, shard.n_bytes - at)))
            thread = threading.Thread(target=self._work, args=(rank, path, details), daemon=True)
            self._threads.append(thread)
            thread.start()
        self._now("begun", self.groups)
        return head

    def prepare(self, cut: CutWithout, is_busy: Callable[[], bool]) -> None:
        self.spares = [[source.digest for source in cut(lost, lambda: None)] for lost in range(len(self._there))]

    def lose(self, index: int, after_calls: int = 0) -> None:
        """The device at this place is gone for good after so many calls of its group."""
        if self._in_group == self._there:
            self.ranks[index].lives = after_calls
        del self._there[index]

    def come(self, rate: float) -> None:
        """A new device is there."""
        number = max(self._rates) + 1
        self._rates[number] = rate
        self._there.append(number)

    def worked(self, times: Sequence[RankTimes]) -> None:
        self.times.append(times)

    def leave_out(self, place: int) -> None:
        del self._there[place]

    def end(self) -> None:
        for rank in self.ranks:
            rank.close()
        for thread in self._threads:
            thread.join(30)
        self._threads = []

    def close(self) -> None:
        self.end()

    def _now(self, what: str, group: int) -> None:
        event = self.events.pop((group, what), None)
        if event is not None:
            event()

    def _work(self, rank: Mortal, path: Path, details: bytes) -> None:
        try:
            work(rank, path, details, self._open_with)
        except LostPeerError:
            pass
        except BaseException as error:  # noqa: BLE001 - the test is told
            self.errors.append(error)
        finally:
            rank.close()
