"""Sums of partial sums that are added by a plan (`units.Folding`), of arrays that are long: who sends what to whom.

As `ways.star` and `ways.mesh`, but that a rank may have several arrays to give, and numbers are always exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.peers import Peers
from edgerun.cluster.units import Folding
from edgerun.cluster.wire_format import EXACT
from edgerun.kernels.eighths import BLOCK


def fold_by_star(nodes: F32, folding: Folding, out: F32, peers: Peers) -> None:
    """The head adds up and hands out."""
    if peers.rank != HEAD:
        peers.swap({HEAD: peers.write(nodes.reshape(-1), EXACT)}, {HEAD: out.size}, EXACT)
        peers.read(HEAD, out, EXACT)
        return
    peers.swap({}, {rank: folding.counts[rank] * out.size for rank in peers.others}, EXACT)
    _add(nodes, folding, out, peers)
    peers.swap(dict.fromkeys(peers.others, peers.write(out, EXACT)), {}, EXACT)


def fold_by_mesh(nodes: F32, folding: Folding, out: F32, peers: Peers) -> None:
    """Everybody adds up a part of the numbers, and hands it out."""
    parts = parts_of(out, peers.size)
    edges = np.cumsum([0, *(part.size for part in parts)]).tolist()
    mine = parts[peers.rank]
    sends = {}
    for rank in peers.others:
        low, high = edges[rank], edges[rank + 1]
        sends[rank] = peers.make(nodes[:, low:high].size, EXACT, _writer(nodes[:, low:high]), slot=1 + rank)
    peers.swap(sends, {rank: folding.counts[rank] * mine.size for rank in peers.others}, EXACT)
    _add(nodes[:, edges[peers.rank] : edges[peers.rank + 1]], folding, mine, peers)
    frame = peers.write(mine, EXACT)
    peers.swap(dict.fromkeys(peers.others, frame), {rank: parts[rank].size for rank in peers.others}, EXACT)
    for rank in peers.others:
        peers.read(rank, parts[rank], EXACT)


def parts_of(x: F32, size: int) -> list[F32]:
    """Views of x, one a rank, cut where blocks of the wire begin; the last may be shorter, or empty."""
    step = -(-x.size // (size * BLOCK)) * BLOCK
    return [x[rank * step : (rank + 1) * step] for rank in range(size)]


def _add(nodes: F32, folding: Folding, out: F32, peers: Peers) -> None:
    """out = the sum of this rank's `nodes` and of those that came from the others. What came is overwritten."""
    rows: list[F32] = []
    for rank, count in enumerate(folding.counts):
        mine = rank == peers.rank
        rows += list(nodes if mine else peers.links[rank].body.view(np.float32).reshape(count, -1))
    for into, other in folding.steps:
        rows[into] += rows[other]
    out[...] = rows[0]


def _writer(part: F32) -> Callable[[F32], None]:
    def write(into: F32) -> None:
        into.reshape(part.shape)[...] = part

    return write
