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

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.short import MOST_BYTES, Short
from edgerun.cluster.wire import Frame
from edgerun.cluster.wire_format import BLOCK
from edgerun.errors import UsageError

WayName = Literal["star", "mesh", "ring", "tree"]

Way = Callable[[F32, Peers], None]  # puts the sum of all ranks' x (flat, contiguous) in its place

ONE_SHOT_NUMBERS = 1 << 14  # up to here a mesh sends everything to everybody: latency counts, not bytes

_MOST_KEPT = 16  # lengths that buffers are kept for: a model has few


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
    if x.size > ONE_SHOT_NUMBERS:
        _mesh_in_parts(x, peers)
        return
    frame = peers.write(x, peers.wire)
    peers.swap(dict.fromkeys(peers.others, frame), dict.fromkeys(peers.others, x.size), peers.wire)
    _sum_in_order(frame, x, peers)


def ring(x: F32, peers: Peers) -> None:
    """Each part goes round once to be summed and once to be known."""
    size, rank, wire = peers.size, peers.rank, peers.wire
    onward, back = (rank + 1) % size, (rank - 1) % size
    parts = _parts(x, size)
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


_WAYS: dict[WayName, Way] = {"star": star, "mesh": mesh, "ring": ring, "tree": tree}
_SHORT_WAYS: dict[WayName, Callable[[Short, F32], None]] = {"star": Short.star, "mesh": Short.mesh}
WAY_NAMES: tuple[WayName, ...] = tuple(_WAYS)


def way_of(name: str) -> Way:
    """The way of a name, for one rank of one group. UsageError for any other."""
    for known, found in _WAYS.items():
        if known == name:
            short = _SHORT_WAYS.get(known)
            return found if short is None else _ByLength(found, short)
    raise UsageError(f"no allreduce is called {name!r}; there are {', '.join(WAY_NAMES)}")


class _ByLength:
    """A way with one of its own for short arrays."""

    def __init__(self, long: Way, short: Callable[[Short, F32], None]) -> None:
        self._long = long
        self._short = short
        self._kept: dict[int, Short] = {}  # by the count of numbers

    def __call__(self, x: F32, peers: Peers) -> None:
        kept = self._kept.get(x.size)
        if kept is None:
            if peers.wire.n_bytes(x.size) > MOST_BYTES:
                self._long(x, peers)
                return
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            partners = [HEAD] if self._long is star and peers.rank != HEAD else peers.others
            kept = self._kept[x.size] = Short(peers, x.size, partners)
        self._short(kept, x)


def _mesh_in_parts(x: F32, peers: Peers) -> None:
    parts, wire = _parts(x, peers.size), peers.wire
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


def _parts(x: F32, size: int) -> list[F32]:
    """Views of x, one a rank, cut where blocks of the wire begin; the last may be shorter, or empty."""
    step = -(-x.size // (size * BLOCK)) * BLOCK
    return [x[rank * step : (rank + 1) * step] for rank in range(size)]


def _halves(distance: int) -> list[int]:
    found = []
    while distance > 1:
        distance //= 2
        found.append(distance)
    return found
