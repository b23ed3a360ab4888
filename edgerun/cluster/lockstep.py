"""How ranks stay together within a pass: every rank takes part in every reduction, in one order, and one that cannot go
on says so in the next. Then the pass ends on all of them at the same place, and the next can begin."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import prod
from time import perf_counter

import numpy as np

from edgerun.cluster.collective import F32, HEAD, Collective
from edgerun.cluster.peers import is_long
from edgerun.cluster.rank_times import NUMBERS, RankTimes, Stopwatch, heard
from edgerun.cluster.sum_scripts import SumScript
from edgerun.cluster.units import Folding, RankUnits, in_order, rank_units
from edgerun.errors import DoesNotFitError, EdgerunError, FormatError, LostPeerError, ReadError
from edgerun.events import Span, SpanSink
from edgerun.kernels.recording import Recording
from edgerun.kernels.sum_abi import SPANS
from edgerun.models.ranks import RecordedSum
from edgerun.models.reductions import Reduction
from edgerun.models.spec import Units
from edgerun.weights import WeightStore

_MOST_TEXT_BYTES = 2000
_GATHERED = 1 << 20  # logits of all ranks that are gathered at a time
_KEPT_NUMBERS, _MOST_KEPT = 1 << 13, 16
_NOTHING = np.empty(0, np.float32)
_KINDS: dict[str, type[EdgerunError]] = {"DoesNotFitError": DoesNotFitError, "ReadError": ReadError}


class PassEnded(EdgerunError):
    """Another rank cannot go on with a pass."""


class _Nodes:
    """A rank's partial sums (nodes, numbers + 1): fronts, the numbers of each as they are shaped; ends, what follows
    them. A rank without a unit has one of zeros."""

    def __init__(self, all: F32, shape: tuple[int, ...]) -> None:
        self.all = all
        self.fronts = [node[:-1].reshape(shape) for node in all]
        self.ends = all[:, -1]


class Lockstep:
    """One rank's part in passes: `models.ranks.Ranks`. Since the start: `reductions`, and of what they summed up
    `reduced_bytes` (f32, as one rank has it); `waited_s` for them, the slowest rank and the wire together. On the head
    `times`: what all ranks told with their last logits. store: this rank's; watcher: is told of each sum."""

    watcher: SpanSink | None = None

    def __init__(
        self, collective: Collective, vocab_size: int, store: WeightStore, edges: Iterable[tuple[int, ...]] = ()
    ) -> None:
        """edges: where the units of every rank begin (`units.edges_of`), for each count of units that a layer has.
        FormatError for such as are none of this group."""
        self.collective = collective
        self._units = {each[-1]: rank_units(each, collective.rank) for each in map(tuple, edges)}
        if any(len(each.folding.counts) != collective.size for each in self._units.values()):
            raise FormatError(f"units are not dealt out among the {collective.size} devices of the group")
        self.times: list[RankTimes] = []
        self._vocab_size = vocab_size
        self._stopwatch = Stopwatch(store.statistics)
        self._began = 0.0
        self.reductions = 0
        self.reduced_bytes = 0
        self.waited_s = 0.0
        self._left: deque[Reduction] = deque()  # that are still to come in this pass
        self._buffers: dict[int, tuple[F32, F32, F32]] = {}
        self._kept_nodes: dict[tuple[int, tuple[int, ...]], tuple[RankUnits, _Nodes]] = {}
        self._may = 0  # numbers of the sums that launches may make in this pass

    def all_reduce(self, x: F32) -> None:
        """As `Ranks.all_reduce`. PassEnded when another rank cannot go on."""
        self._catch_up()
        expected = self._left.popleft()
        assert expected == (x.size, 0), f"{x.size} numbers are reduced where {expected} was expected"
        self._end_if(self._reduced(x, 0.0))
        self._go_on()

    def recorded(self, parts: Sequence[F32], units: Units | None, out: F32) -> RecordedSum:
        """As `Ranks.recorded`."""
        return _RecordedSum(self, parts, units, out)

    def script(self, parts: Sequence[F32], units: Units | None, out: F32) -> SumScript | None:
        """A sum for a kernel; None where it must be Python that sums."""
        sums, size = self.collective.recorded, self.collective.size
        if sums is None:
            return None
        mine = RankUnits((), ((0, None),), in_order(size)) if units is None else self._units[units.count]
        return sums.script(parts, mine, out)

    def is_left(self) -> bool:
        """Whether a launch did not make its sum, or that ends the pass."""
        sums = self.collective.recorded
        return sums is not None and sums.stopped() is not None

    def finish(self, script: SumScript) -> bool:
        """As `RecordedSum.finish`."""
        sums = self.collective.recorded
        assert sums is not None  # script
        done = sums.finish(script, perf_counter)
        self._catch_up()
        if done:
            self._end_if(bool(script.flag[0] > 0))
        sums.begin(self._may)
        return done

    def _catch_up(self) -> None:
        """Count the sums that launches made; none may be made by them until `begin`."""
        sums = self.collective.recorded
        made = [] if sums is None else sums.made()
        for began, ended in made:
            expected = self._left.popleft()
            nodes = 1 if not expected.units else self._units[expected.units].folding.counts[self.collective.rank]
            self._took(began, ended, expected.numbers, 4 * nodes * (expected.numbers + 1))

    def _go_on(self) -> None:
        """Launches may make sums again."""
        if self.collective.recorded is not None:
            self.collective.recorded.begin(self._may)

    def add_units(self, parts: Sequence[F32], units: Units, out: F32) -> None:
        """As `Ranks.add_units`. PassEnded when another rank cannot go on."""
        self._catch_up()
        expected = self._left.popleft()
        assert expected == (out.size, units.count), f"{out.size} numbers are reduced where {expected} was expected"
        mine, nodes = self._nodes(units.count, out.shape)
        for into, other in mine.steps:
            np.add(parts[into], parts[other], parts[into])
        if not mine.last:
            nodes.all[...] = 0  # where the last sum came
        for node, (into, last) in zip(nodes.fronts, mine.last, strict=False):
            if last is None:
                node[...] = parts[into]
            else:
                np.add(parts[into], parts[last], node)
        self._end_if(self._folded(nodes, mine.folding, out, 0.0))
        self._go_on()

    @property
    def size(self) -> int:
        """As `Ranks.size`."""
        return self.collective.size

    def overlapped(self, compute: Callable[[], float]) -> None:
        """As `Ranks.overlapped`."""
        before, told_before = self.waited_s, self._stopwatch.waited_s
        waited_s = compute()
        self.waited_s, self._stopwatch.waited_s = before + waited_s, told_before + waited_s

    def _end_if(self, is_over: bool) -> None:
        if is_over:
            self._left.clear()
            raise PassEnded("another device of the group cannot go on")

    def run(self, sums: Iterable[Reduction], compute: Callable[[], F32]) -> F32 | None:
        """A pass with these reductions. `compute` returns this rank's logits (n, its part of the
        vocabulary); the head gets all ranks', (n, vocab), side by side.

        Raises what `compute` raises, and on the head what ended it on another rank; the others get PassEnded. Then all
        ranks are ready for the next pass. LostPeerError, an interrupt, or an error after the last reduction: the group
        is over."""
        self._left = deque(sums)
        self._may = max((each.numbers for each in self._left), default=0) if len(self._left) <= SPANS else 0
        self._began = perf_counter()
        self._go_on()
        try:
            mine = compute()
            self._catch_up()
            assert not self._left, "reductions are missing"
        except LostPeerError:
            raise
        except PassEnded as ended:
            self._tell("", ended)
            raise
        except BaseException as error:
            self._catch_up()
            if not self._left or not isinstance(error, Exception):  # the others cannot be told: the group is over
                self.collective.close()
                raise
            numbers, units = self._left[0]
            nothing = np.zeros(numbers, np.float32)
            if units:
                plan, nodes = self._nodes(units, nothing.shape)
                nodes.all[...] = 0
                self._folded(nodes, plan.folding, nothing, 1.0)
            else:
                self._reduced(nothing, 1.0)
            self._left.clear()
            self._tell(f"{type(error).__name__} {error}", error)
            raise
        return self._gathered(mine)

    def _reduced(self, x: F32, ends: float) -> bool:
        """x becomes the sum of all ranks'; whether one of them ends the pass."""
        flat = x.reshape(-1)
        n = flat.size
        if is_long(n):
            began = perf_counter()
            is_over = self.collective.reduce_long(flat, ends > 0)
            self._took(began, perf_counter(), n, flat.nbytes + 4)
            return is_over
        buffer, front, end = self._buffers.get(n) or self._make_buffers(n)
        front[...] = flat
        end[0] = ends
        began = perf_counter()
        self.collective.all_reduce(buffer)
        self._took(began, perf_counter(), n, buffer.nbytes)
        flat[...] = front
        return bool(end[0] > 0)

    def _folded(self, nodes: _Nodes, folding: Folding, out: F32, ends: float) -> bool:
        """out becomes what the partial sums of all ranks make together, of which these are this one's; whether a rank
        ends the pass."""
        nodes.ends[...] = 0
        nodes.ends[0] = ends
        began = perf_counter()
        self.collective.fold(nodes.all, folding, nodes.all[0])
        self._took(began, perf_counter(), out.size, nodes.all.nbytes)
        out[...] = nodes.fronts[0]
        return bool(nodes.ends[0] > 0)

    def _took(self, began: float, ended: float, numbers: int, n_bytes: int) -> None:
        """Of a sum of so many numbers, of which this rank gave `n_bytes`."""
        if self.watcher is not None:
            self.watcher(Span("cluster", f"sum of {numbers} numbers", began, ended, n_bytes))
        self.waited_s += ended - began
        self._stopwatch.waited_s += ended - began
        self.reductions += 1
        self.reduced_bytes += n_bytes

    def _nodes(self, count: int, shape: tuple[int, ...]) -> tuple[RankUnits, _Nodes]:
        """What to do with units of so many, and buffers for their sums. Of short arrays they are kept, as those of sums
        without units."""
        found = self._kept_nodes.get((count, shape))
        if found is None:
            mine = self._units[count]
            width = prod(shape) + 1  # what follows the numbers says whether the rank ends the pass
            found = mine, _Nodes(np.zeros((mine.folding.counts[self.collective.rank], width), np.float32), shape)
            if width > _KEPT_NUMBERS or len(self._kept_nodes) >= _MOST_KEPT:
                self._kept_nodes.clear()
            self._kept_nodes[count, shape] = found
        return found

    def _make_buffers(self, n: int) -> tuple[F32, F32, F32]:
        """For n numbers and whether it ends, and views of the two. They are kept: a model has few lengths of short
        arrays."""
        if len(self._buffers) >= _MOST_KEPT:
            self._buffers.clear()
        buffer = np.empty(n + 1, np.float32)
        self._buffers[n] = buffer, buffer[:n], buffer[n:]
        return self._buffers[n]

    def _gathered(self, mine: F32) -> F32 | None:
        """On the head the logits of all. With the first of them each rank tells its times."""
        step = max(1, _GATHERED // self._vocab_size)
        watch, is_head = self._stopwatch, self.collective.rank == HEAD
        watch.passes += 1
        watch.busy_s += perf_counter() - self._began
        found = []
        for low in range(0, len(mine), step):
            some = mine[low : low + step]
            tail = watch.told() if low == 0 else _NOTHING
            began = perf_counter()
            parts = self.collective.gather(np.concatenate([some.reshape(-1), tail]))
            ended = perf_counter()
            if self.watcher is not None:
                self.watcher(Span("cluster", "logits of all", began, ended, some.nbytes))
            if parts:
                self._check(parts, len(some), tail.size)
            if low == 0 and parts:
                self.times = [heard(part[-NUMBERS:]) for part in parts]
                parts = [part[:-NUMBERS] for part in parts]
            if is_head:  # it waits for the others' logits; they do not wait
                watch.busy_s += ended - began
                watch.waited_s += ended - began
            found += [np.concatenate([part.reshape(len(some), -1) for part in parts], axis=1)] if parts else []
        if not is_head:
            return None
        return np.concatenate(found) if found else np.empty((0, self._vocab_size), np.float32)

    def _check(self, parts: Sequence[F32], rows: int, tail: int) -> None:
        """LostPeerError unless the ranks gave logits of the whole vocabulary together, and each what follows them."""
        sizes = [part.size - tail for part in parts]
        if any(size < 0 or size % rows for size in sizes) or sum(sizes) != rows * self._vocab_size:
            raise LostPeerError("a rank gave logits that are not those of its part of the vocabulary")

    def _tell(self, text: str, error: Exception) -> None:
        """All ranks' reasons for ending a pass come to the head, which raises the first of another rank."""
        data = text.encode()[:_MOST_TEXT_BYTES]
        padded = np.frombuffer(data + bytes(-len(data) % 4), np.uint8).view(np.float32)
        for rank, part in enumerate(self.collective.gather(padded)):
            said = part.tobytes().rstrip(b"\0").decode(errors="replace")
            if rank != HEAD and said and isinstance(error, PassEnded):
                name, _, why = said.partition(" ")
                raise _KINDS.get(name, EdgerunError)(f"device {rank} of the group: {why}") from None


class _RecordedSum:
    """See `models.ranks.RecordedSum`."""

    def __init__(self, lockstep: Lockstep, parts: Sequence[F32], units: Units | None, out: F32) -> None:
        self._lockstep, self._parts, self._units, self._out = lockstep, parts, units, out
        self._script: SumScript | None = None

    def lay_out(self, recording: Recording) -> bool:
        script = self._script = self._lockstep.script(self._parts, self._units, self._out)
        sums = self._lockstep.collective.recorded
        if script is None or sums is None:
            return False
        recording.lay_out_sum(script.slots, sums.state, script.numbers)
        return True

    def is_left(self) -> bool:
        return self._lockstep.is_left()

    def finish(self) -> bool:
        assert self._script is not None  # lay_out
        return self._lockstep.finish(self._script)
