"""Ways to sum over ranks: who sends what to whom.

`star`  to the head and back: 2 hops, and 2 (n - 1) messages pass the head's link. TPI-LLM's.
`mesh`  everybody to everybody at once: 1 hop. Large arrays (prompts) in two: each rank sums a part, and hands it out.
`ring`  parts go round, 2 (n - 1) hops of 1/n each: the fewest bytes per link, the most hops.
`tree`  pairs, then pairs of pairs, and back: 2 log2 n hops.

`star` and `mesh` sum in the order of ranks, so they give the same bits; `ring` and `tree` in an order of their own, the
same on every rank. Where the wire is not exact, whoever hands a sum out goes on with what the others read of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.folds import fold_by_mesh, fold_by_star, parts_of
from edgerun.cluster.long import Long, long_parts
from edgerun.cluster.peers import Peers, is_long
from edgerun.cluster.short import MOST_BYTES, Short
from edgerun.cluster.units import Folding
from edgerun.cluster.wire import Frame
from edgerun.cluster.wire_format import EXACT, WireFormat, wire_format
from edgerun.errors import UsageError

WayName = Literal["star", "mesh", "ring", "tree"]

_Long = Callable[[F32, Peers], None]  # puts the sum of all ranks' x (flat, contiguous) in its place
_LongFold = Callable[[F32, Folding, F32, Peers], None]  # as `Way.fold`

_MOST_KEPT = 16  # lengths that buffers are kept for: a model has few
_MOST_LONG = 4  # the same of long arrays: whole chunks of a prompt, and a rest
_EIGHTHS = wire_format("q8")


def star(x: F32, peers: Peers) -> None:
    """The head adds up and hands out."""
    if peers.rank != HEAD:
        peers.swap({HEAD: peers.write(x, peers.wire)}, {HEAD: x.size}, peers.wire)
        peers.read(HEAD, x, peers.wire)
        return
    peers.swap({}, dict.fromkeys(peers.others, x.size), peers.wire)
    for rank in peers.others:
        peers.add(rank, x, peers.wire)
    frame = peers.write(x, peers.wire)
    peers.swap(dict.fromkeys(peers.others, frame), {}, peers.wire)
    _as_others_read(frame, x, peers)


def mesh(x: F32, peers: Peers) -> None:
    """Everybody adds up everything, or a part of it."""
    if is_long(x.size):
        _mesh_in_parts(x, peers)
        return
    frame = peers.write(x, peers.wire)
    peers.swap(dict.fromkeys(peers.others, frame), dict.fromkeys(peers.others, x.size), peers.wire)
    _sum_in_order(frame, x, peers)


def ring(x: F32, peers: Peers) -> None:
    """Each part goes round once to be summed and once to be known."""
    size, rank, wire = peers.size, peers.rank, peers.wire
    onward, back = (rank + 1) % size, (rank - 1) % size
    parts = parts_of(x, size)
    for step in range(size - 1):
        out, into = parts[(rank - step) % size], parts[(rank - step - 1) % size]
        peers.swap({onward: peers.write(out, wire)}, {back: into.size}, wire)
        peers.add(back, into, wire)
    mine = parts[onward]  # whole now
    frame = peers.write(mine, wire)
    _as_others_read(frame, mine, peers)
    for step in range(size - 1):
        into = parts[(rank - step) % size]
        peers.swap({onward: frame}, {back: into.size}, wire)
        peers.read(back, into, wire)
        frame = peers.write_again(back)


def tree(x: F32, peers: Peers) -> None:
    """Up by pairs to the head, and down the same way."""
    wire, rank, distance = peers.wire, peers.rank, 1
    while distance < peers.size and not rank & distance:
        if rank + distance < peers.size:
            peers.swap({}, {rank + distance: x.size}, wire)
            peers.add(rank + distance, x, wire)
        distance *= 2
    if rank != HEAD:
        parent = rank - distance
        peers.swap({parent: peers.write(x, wire)}, {parent: x.size}, wire)
        peers.read(parent, x, wire)
        frame = peers.write_again(parent)
    else:
        frame = peers.write(x, wire)
        _as_others_read(frame, x, peers)
    children = [rank + near for near in _halves(distance) if rank + near < peers.size]
    peers.swap(dict.fromkeys(children, frame), {}, wire)


_WAYS: dict[WayName, _Long] = {"star": star, "mesh": mesh, "ring": ring, "tree": tree}
FOLDING: tuple[WayName, ...] = ("star", "mesh")  # ways that can `fold`
WAY_NAMES: tuple[WayName, ...] = tuple(_WAYS)


class Way:
    """How one rank of one group sums, by the name of the way. UsageError for a name that is none."""

    def __init__(self, name: str) -> None:
        found = next((known for known in _WAYS if known == name), None)
        if found is None:
            raise UsageError(f"no allreduce is called {name!r}; there are {', '.join(WAY_NAMES)}")
        self.name: WayName = found
        self._kept: dict[tuple[int, Folding, int], Short] = {}  # by the count of numbers, the folding and the wire
        self._kept_long: dict[int, Long] = {}  # by the count of numbers
        self._with_end = np.empty(0, np.float32)

    def all_reduce(self, x: F32, peers: Peers) -> None:
        """Put the sum of all ranks' x (flat, contiguous) in its place."""
        short = self._short(peers, x.size, peers.in_order, peers.wire)
        if short is None and (long := self._long(peers, x.size)) is not None:
            long(x, ends=False)
        elif short is None:
            _WAYS[self.name](x, peers)
        else:
            short(x, x)

    def fold(self, nodes: F32, folding: Folding, out: F32, peers: Peers) -> None:
        """As `Collective.fold`. UsageError for a way that cannot."""
        short = self._short(peers, out.size, folding, EXACT)
        if short is not None:
            short(nodes.reshape(-1), out)
        elif self.name == "star":
            fold_by_star(nodes, folding, out, peers)
        elif self.name == "mesh":
            fold_by_mesh(nodes, folding, out, peers)
        else:
            raise UsageError(
                f"a {self.name} adds in an order of its own; sums that shall be the same need a star or a mesh"
            )

    def reduce_long(self, x: F32, ends: bool, peers: Peers) -> bool:
        """As `Collective.reduce_long`, of x flat and contiguous."""
        long = self._long(peers, x.size)
        if long is not None:
            return long(x, ends=ends)
        if len(self._with_end) <= x.size:
            self._with_end = np.empty(x.size + 1, np.float32)
        given = self._with_end[: x.size + 1]
        given[:-1], given[-1] = x, ends
        _WAYS[self.name](given, peers)
        x[...] = given[:-1]
        return bool(given[-1] > 0)

    def _long(self, peers: Peers, count: int) -> Long | None:
        """For a long sum that is rounded to eighths; a model has few kinds of them."""
        if peers.wire != _EIGHTHS or self.name not in FOLDING or not is_long(count):
            return None
        kept = self._kept_long.get(count)
        if kept is None and long_parts(count, peers.size)[-1] != slice(count, count):
            if len(self._kept_long) >= _MOST_LONG:
                self._kept_long.clear()
            kept = self._kept_long[count] = Long(peers, count, is_star=self.name == "star")
        return kept

    def _short(self, peers: Peers, count: int, folding: Folding, wire: WireFormat) -> Short | None:
        """For a sum that is short enough; a model has few kinds of them."""
        key = count, folding, wire.code
        kept = self._kept.get(key)
        if kept is None and self.name in FOLDING and wire.n_bytes(count * max(folding.counts)) <= MOST_BYTES:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            way: Literal["star", "mesh"] = "star" if self.name == "star" else "mesh"
            kept = self._kept[key] = Short(peers, count, folding, wire, way)
        return kept


def _mesh_in_parts(x: F32, peers: Peers) -> None:
    parts, wire = parts_of(x, peers.size), peers.wire
    mine = parts[peers.rank]
    out = {rank: peers.write(parts[rank], wire, slot=1 + rank) for rank in peers.others}
    peers.swap(out, dict.fromkeys(peers.others, mine.size), wire)
    _sum_in_order(peers.write(mine, wire), mine, peers)
    frame = peers.write(mine, wire)
    peers.swap(dict.fromkeys(peers.others, frame), {rank: parts[rank].size for rank in peers.others}, wire)
    _as_others_read(frame, mine, peers)
    for rank in peers.others:
        peers.read(rank, parts[rank], wire)


def _sum_in_order(mine: Frame, x: F32, peers: Peers) -> None:
    """The sum of what all ranks sent, in their order, this one's (`mine`) as the others read it, into x."""
    if peers.rank == 0:
        _as_others_read(mine, x, peers)
    else:
        peers.read(0, x, peers.wire)
    for rank in range(1, peers.size):
        if rank != peers.rank:
            peers.add(rank, x, peers.wire)
        else:
            own = peers.scratch(x.size)
            peers.wire.read(mine.body, own)
            x += own


def _as_others_read(frame: Frame, x: F32, peers: Peers) -> None:
    if not peers.wire.is_exact:
        peers.wire.read(frame.body, x)


def _halves(distance: int) -> list[int]:
    found = []
    while distance > 1:
        distance //= 2
        found.append(distance)
    return found
