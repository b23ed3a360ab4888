"""What a rank did with its time, told to the head with its logits: no message more, and of the same passes on all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from time import monotonic

import numpy as np

from edgerun.cluster.collective import F32
from edgerun.device import process_memory

NUMBERS = 5
_MIB = 1 << 20
_LOOK_S = 1.0  # between looks at the process's memory
_CLEARLY = 1.2  # times as long as others: less is noise
_STALLS = ("stall_s", "neuron_stall_s")  # seconds that a store had to wait for its disk


@dataclass(frozen=True)
class RankTimes:
    """Of some passes. busy_s: they took, waited_s of it for sums (others and the wire together), disk_s of it for
    weights that were still being read; memory_mib: what the process holds."""

    passes: float
    busy_s: float
    waited_s: float
    disk_s: float
    memory_mib: float

    def __add__(self, later: RankTimes) -> RankTimes:
        return RankTimes(
            self.passes + later.passes,
            self.busy_s + later.busy_s,
            self.waited_s + later.waited_s,
            self.disk_s + later.disk_s,
            later.memory_mib,
        )


class Stopwatch:
    """A rank's times since it last told them. statistics: of its store."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        self.busy_s = 0.0
        self.waited_s = 0.0
        self.passes = 0
        self._statistics = statistics
        self._stalled_s = 0.0
        self._memory_mib = 0.0
        self._looked = 0.0

    def told(self) -> F32:
        """As numbers, and from the start again."""
        now = monotonic()
        if now > self._looked + _LOOK_S:
            self._looked, self._memory_mib = now, process_memory().resident_bytes / _MIB
        counted = self._statistics()
        stalled_s = sum(counted.get(key, 0.0) for key in _STALLS)
        found = RankTimes(self.passes, self.busy_s, self.waited_s, stalled_s - self._stalled_s, self._memory_mib)
        self.passes, self.busy_s, self.waited_s, self._stalled_s = 0, 0.0, 0.0, stalled_s
        return np.array(astuple(found), np.float32)


def heard(numbers: F32) -> RankTimes:
    """What a rank told. What cannot be is nothing: a rank that says nonsense deceives nobody but its reader."""
    sane = np.nan_to_num(numbers, nan=0.0, posinf=0.0, neginf=0.0)
    return RankTimes(*(max(0.0, float(each)) for each in sane))


@dataclass(frozen=True)
class Split:
    """A rank's time by what it was spent on: its own computing, waiting for slower ranks, the wire, and the disk."""

    compute_s: float
    wait_s: float
    wire_s: float
    disk_s: float


def split(ranks: Sequence[RankTimes]) -> list[Split]:
    """A sum ends for all at about the same time, so whoever waits the least waits for the wire alone; what others wait
    longer, they wait for slower ranks."""
    wire_s = min((each.waited_s for each in ranks), default=0.0)
    found = []
    for each in ranks:
        disk_s = min(each.disk_s, max(0.0, each.busy_s - each.waited_s))
        compute_s = max(0.0, each.busy_s - each.waited_s - disk_s)
        found.append(Split(compute_s, each.waited_s - wire_s, wire_s, disk_s))
    return found


def straggler(found: Sequence[Split]) -> int | None:
    """The rank that the others wait for: computing and its disk take it clearly longer than the one in the middle of
    them; None where no rank does."""
    own = [each.compute_s + each.disk_s for each in found]
    if len(own) < 2 or not max(own):
        return None
    slowest = own.index(max(own))
    others = sorted(own[:slowest] + own[slowest + 1 :])
    return slowest if max(own) > _CLEARLY * others[len(others) // 2] else None
