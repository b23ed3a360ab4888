"""The head's part in a group: every pass that its decoder makes is made by all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic, perf_counter

from edgerun.cluster.collective import F32, Collective
from edgerun.cluster.copies import Copies, Kept
from edgerun.cluster.copying import Copier, RankPart
from edgerun.cluster.lockstep import Lockstep
from edgerun.cluster.mirror import Teller
from edgerun.cluster.rank_times import RankTimes
from edgerun.events import SpanSink
from edgerun.kv import Page, PagePool
from edgerun.models.places import Pass
from edgerun.models.ranks import RecordedSum
from edgerun.models.reductions import reductions
from edgerun.models.spec import ModelSpec, Units
from edgerun.weights import WeightStore

_TELL_S = 0.5


class Conductor:
    """`models.ranks.HeadRanks` over a collective. `follow` its decoder's pages before the first pass.

    store, edges: as of `Lockstep`; worked: told twice a second what all ranks did since, in their order."""

    def __init__(
        self,
        collective: Collective,
        spec: ModelSpec,
        store: WeightStore,
        worked: Callable[[Sequence[RankTimes]], None],
        edges: Iterable[tuple[int, ...]] = (),
    ) -> None:
        self._collective = collective
        self._spec = spec
        self.lockstep = Lockstep(collective, spec.vocab_size, store, edges)
        self._worked = worked
        self._since: list[RankTimes] = []
        self._told = monotonic()
        self._teller: Teller | None = None
        self._copies: Copies | None = None
        self._copier: Copier | None = None

    @property
    def size(self) -> int:
        """Ranks."""
        return self._collective.size

    def follow(self, pool: PagePool, copies: Copies | None = None, parts: Sequence[RankPart] = ()) -> None:
        """The others shall hold what this pool's sequences hold. copies: of keys, values and states, of which all ranks
        have these parts."""
        self._teller, self._copies = Teller(pool), copies
        teller = self._teller
        if copies is None:
            return

        def copied(group: int, to: Page, source: Page) -> None:
            copies.forget(to)
            teller.copied(group, to, source)

        pool.copied = copied
        self._copier = Copier(self._collective, copies, parts, pool, teller)

    def give_back(self, kept: Sequence[Kept]) -> int:
        """See `Copier.give_back`. Before the first pass."""
        return 0 if self._copier is None else self._copier.give_back(kept)

    def watch(self, watcher: SpanSink | None) -> None:
        """As `HeadRanks.watch`."""
        self.lockstep.watcher = watcher

    def all_reduce(self, x: F32) -> None:
        """As `Ranks.all_reduce`."""
        self.lockstep.all_reduce(x)

    def recorded(self, parts: Sequence[F32], units: Units | None, out: F32) -> RecordedSum:
        """As `Ranks.recorded`."""
        return self.lockstep.recorded(parts, units, out)

    def add_units(self, parts: Sequence[F32], units: Units, out: F32) -> None:
        """As `Ranks.add_units`."""
        self.lockstep.add_units(parts, units, out)

    def overlapped(self, compute: Callable[[], float]) -> None:
        """As `Ranks.overlapped`."""
        self.lockstep.overlapped(compute)

    def run(self, task: Pass, x: F32, compute: Callable[[], F32]) -> F32:
        """As `HeadRanks.run`."""
        assert self._teller is not None  # follow
        began = perf_counter()
        if self._copies is not None:
            self._copies.writes(task)
        self._collective.announce(self._teller.said(task))
        self._collective.broadcast(x)
        logits = self.lockstep.run(reductions(self._spec, task.rows, self.size), compute)
        assert logits is not None  # this is the head
        if len(logits):
            self._note(self.lockstep.times)
        if self._copier is not None and self.size > 1:
            self._copier.copy(task, perf_counter() - began)
        return logits

    def _note(self, times: list[RankTimes]) -> None:
        self._since = [a + b for a, b in zip(self._since, times, strict=True)] if self._since else times
        now = monotonic()
        if now > self._told + _TELL_S:
            self._worked(self._since)
            self._since, self._told = [], now

    def end(self) -> None:
        """The others may go. LostPeerError when they have."""
        self._collective.announce(b"")
