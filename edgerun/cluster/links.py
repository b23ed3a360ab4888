"""How long a sum over ranks takes, by what was measured of their links, and which way is the fastest.

    star   2 hops, and all that the head sends and receives passes one cable:  2 h + n B b + 2 (n - 2) m
    mesh   1 hop, everybody's cable as full in both directions at once:        h + (n - 1 + w) B b + (n - 2) m
    ring   2 (n - 1) hops of a part:                                           2 (n - 1) (h + B b / n)
    tree   2 hops for each doubling:                                           2 ceil(log2 n) (h + B b)

h: from a small message's sending to its arrival, software included; B: bytes; b: seconds a byte; m: what another
message costs whoever handles several. In a star whoever has its sum first sends its next part first, while the head
still sends to the others: of 2 (n - 1) messages n - 2 are on the cable at the same time as one the other way. In a mesh
ranks do not begin at one moment, so a message finds another on its receiver's cable now and then: w = (n - 2) / (n - 1)
is what that adds, measured with four ranks. On shared
air all messages of all ranks take turns: B b comes 2 (n - 1) times in a star, n (n - 1) times in a mesh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from edgerun.cluster.cables import PROBE_BYTES, Cable, Cables
from edgerun.cluster.collective import F32, HEAD
from edgerun.cluster.control import Seat
from edgerun.cluster.peers import Peers
from edgerun.cluster.ways import FOLDING, WAY_NAMES, Way, WayName
from edgerun.cluster.wire import HEADER
from edgerun.cluster.wire_format import EXACT, WireFormat, wire_format
from edgerun.errors import LostPeerError

_ROUNDS = 9
_SMALL = 64  # numbers: latency alone
_LARGE = 1 << 15  # 128 KiB: what a slow link needs 10 ms for
_ROUNDING_S = 1e-9  # of a number, there and back, more than exact ones take: of a core of an Emerald Rapids, twice over
_SHARED = 1.6  # times as long in both directions at once: the two take turns


@dataclass(frozen=True)
class Links:
    """A group's links, as if all were like the slowest. Symbols: see above."""

    hop_s: float
    byte_s: float
    message_s: float
    is_duplex: bool


def predict_s(way: WayName, links: Links, size: int, n_bytes: int) -> float:
    """How long `size` ranks need to sum `n_bytes` each."""
    hop, wire = links.hop_s, n_bytes * links.byte_s
    others = size - 1
    if size < 2:
        return 0.0
    if way == "star":
        return 2 * hop + (size if links.is_duplex else 2 * others) * wire + 2 * (others - 1) * links.message_s
    if way == "mesh":
        messages = others + (others - 1) / others if links.is_duplex else size * others
        return hop + messages * wire + (others - 1) * links.message_s
    if way == "ring":
        return 2 * others * (hop + (1 if links.is_duplex else size) * wire / size)
    return 2 * math.ceil(math.log2(size)) * (hop + wire)


def choose_way(links: Links, size: int, n_bytes: int, names: Sequence[WayName] = WAY_NAMES) -> WayName:
    """The fastest; of equal ones the first named."""
    return min(names, key=lambda way: predict_s(way, links, size, n_bytes))


def choose_wire(links: Links) -> WireFormat:
    """For a prompt's sums: q8 where what a number's bytes save on the wire is more than what rounding costs it."""
    eighths = wire_format("q8")
    saved = 1 - eighths.n_bytes(1 << 10) / EXACT.n_bytes(1 << 10)
    return eighths if saved * 4 * links.byte_s > _ROUNDING_S else EXACT


def settle(peers: Peers, numbers: int, seats: Sequence[Seat], cables: Cables) -> tuple[WayName, Links]:
    """All ranks together: measure the links, and agree on the star or the mesh for sums of so many numbers (the others,
    which add in orders of their own, are for whoever names them). Half a second at most on links that are worth using.
    seats, cables: as of `measure`. LostPeerError."""
    measured = measure(peers, seats, cables)
    chosen = WAY_NAMES.index(choose_way(measured, peers.size, peers.wire.n_bytes(numbers), FOLDING))
    told = np.array([chosen, measured.hop_s, measured.byte_s, measured.message_s, measured.is_duplex], np.float32)
    _tell(peers, told)
    return WAY_NAMES[int(told[0])], Links(float(told[1]), float(told[2]), float(told[3]), bool(told[4]))


def measure(peers: Peers, seats: Sequence[Seat], cables: Cables) -> Links:
    """All ranks together; only the head's is of all links. seats: of all ranks; cables: what the head knows of its own
    already, where only small messages are sent then, and keeps what it measures."""
    pairs = combinations(range(peers.size), 2)
    hops = {pair: _ping_pong(peers, *pair, _SMALL, _ROUNDS) for pair in pairs}
    hop = _largest_of_all(peers, max((each for each in hops.values() if each), default=0.0))
    probes = {other: _round_trip(peers, HEAD, other, PROBE_BYTES // 4, _SMALL, 2) for other in range(1, peers.size)}
    hosts = [seat.address.rpartition(":")[0] for seat in seats]
    known: dict[int, Cable] = {}
    if peers.rank == HEAD:
        found = {}
        for other in peers.others:
            hop_s = hops[HEAD, other]
            probe_s = max(0.0, probes[other] - 2 * hop_s)
            found[other] = cables.find(seats[other].fingerprint, hosts[other], hop_s, probe_s)
        known = {other: cable for other, cable in found.items() if cable is not None}
    for other in _unknown(peers, known):
        own_hop = hops[HEAD, other]
        wire = max(0.0, _ping_pong(peers, HEAD, other, _LARGE, 3) - own_hop)
        probe = max(0.0, _ping_pong(peers, HEAD, other, PROBE_BYTES // 4, 5) - own_hop)
        both = _both(peers, HEAD, other, _LARGE, 3) - _both(peers, HEAD, other, _SMALL, 5)
        if peers.rank == HEAD:
            is_duplex = both < _SHARED * max(wire, own_hop / 10)
            # A token's messages are short. Of a long one on a far link TCP holds the end back until the beginning was
            # acknowledged: that is no time of its bytes. Zero says that the small ones met with a busy processor.
            told = [each for each in (wire / (4 * _LARGE), probe / PROBE_BYTES) if each > 0]
            known[other] = Cable(hosts[other], time.time(), own_hop, min(told, default=0.0), is_duplex)
            if told:
                cables.keep(seats[other].fingerprint, known[other])
    sums, x = Way("star"), np.zeros(_SMALL, np.float32)
    all_s = _timed(lambda: sums.all_reduce(x, peers), _ROUNDS)
    more = max(1, 2 * (peers.size - 2))
    message = max(0.0, all_s - 2 * hop) / more if peers.size > 2 else 0.0
    slowest = max(known.values(), key=lambda cable: cable.byte_s, default=None)
    return Links(hop, 0.0, message, True) if slowest is None else Links(hop, slowest.byte_s, message, slowest.is_duplex)


def _unknown(peers: Peers, known: Collection[int]) -> list[int]:
    """The ranks to whom the head measures its cable, since it is not `known`; of another rank: itself, or nobody."""
    if peers.rank == HEAD:
        asked = {rank: peers.write(np.array([rank not in known], np.float32), EXACT, rank) for rank in peers.others}
        peers.swap(asked, {}, EXACT)
        return [rank for rank in peers.others if rank not in known]
    is_asked = np.empty(1, np.float32)
    peers.swap({}, {HEAD: 1}, EXACT)
    peers.read(HEAD, is_asked, EXACT)
    return [peers.rank] if is_asked[0] else []


def _ping_pong(peers: Peers, low: int, high: int, count: int, rounds: int) -> float:
    """Half of a round trip between two ranks; 0 for all others."""
    return _round_trip(peers, low, high, count, count, rounds) / 2


def _round_trip(peers: Peers, low: int, high: int, there: int, back: int, rounds: int) -> float:
    """So many numbers from one rank to another, and some back; 0 for all others. They travel as those of a token's sums
    do (`short.py`): `swap`, which waits for several peers at once, takes longer."""
    if peers.rank not in (low, high):
        return 0.0
    is_first = peers.rank == low
    link = peers.links[high if is_first else low]
    frames = [peers.write(np.zeros(each, np.float32), EXACT, slot).whole for slot, each in enumerate((there, back))]
    mine, other = frames if is_first else frames[::-1]
    arrived, header = memoryview(bytearray(len(other))), other[: HEADER.size]
    if not peers.is_patient:
        peers.be_patient(True)

    def once() -> None:
        if is_first:
            link.put(mine, peers.is_lost)
        link.take(arrived, header, 0, peers.is_lost)
        link.received_bytes += len(arrived)
        if not is_first:
            link.put(mine, peers.is_lost)

    try:
        return _timed(once, rounds)
    except LostPeerError as error:
        raise peers.explained(error) from error


def _both(peers: Peers, low: int, high: int, count: int, rounds: int) -> float:
    """An exchange in both directions at once."""
    if peers.rank not in (low, high):
        return 0.0
    other = high if peers.rank == low else low
    x = np.zeros(count, np.float32)
    return _timed(lambda: peers.swap({other: peers.write(x, EXACT)}, {other: count}, EXACT), rounds)


def _timed(act: Callable[[], None], rounds: int) -> float:
    """The lower quartile of some, after one that fills buffers and opens TCP's window: what is slower was disturbed."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[rounds // 4]


def _largest_of_all(peers: Peers, value: float) -> float:
    """On the head; elsewhere the rank's own."""
    if peers.rank != HEAD:
        peers.swap({HEAD: peers.write(np.array([value], np.float32), EXACT)}, {}, EXACT)
        return value
    peers.swap({}, dict.fromkeys(peers.others, 1), EXACT)
    got = np.empty(1, np.float32)
    for rank in peers.others:
        peers.read(rank, got, EXACT)
        value = max(value, float(got[0]))
    return value


def _tell(peers: Peers, told: F32) -> None:
    if peers.rank == HEAD:
        peers.swap(dict.fromkeys(peers.others, peers.write(told, EXACT)), {}, EXACT)
    else:
        peers.swap({}, {HEAD: told.size}, EXACT)
        peers.read(HEAD, told, EXACT)
