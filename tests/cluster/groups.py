"""Groups whose ranks are threads of the test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgerun.cluster.collective import Collective
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.peers import Peers
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import Link, patience
from edgerun.cluster.wire_format import wire_format

T = TypeVar("T")


def on_all(group: Sequence[Collective], act: Callable[[Collective], T]) -> list[T]:
    """What `act` returns on each rank, all at once; the first error of any."""
    with ThreadPoolExecutor(len(group)) as threads:
        return list(threads.map(act, group))


def linked_group(size: int, way: str = "star", wire: str = "f32", wait_s: float = 20) -> list[LinkedCollective]:
    """Ranks joined by pairs of sockets."""
    links: list[dict[int, Link]] = [{} for _ in range(size)]
    for low in range(size):
        for high in range(low + 1, size):
            ends = socket.socketpair()
            links[low][high], links[high][low] = Link(ends[0], high), Link(ends[1], low)
    return [
        LinkedCollective(Peers(rank, size, links[rank], wire_format(wire), patience(wait_s)), Way(way))
        for rank in range(size)
    ]
