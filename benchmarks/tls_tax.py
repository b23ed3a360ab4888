"""What encryption costs a token: sums of 8 KiB among processes of this machine's loopback, with TLS 1.3 and without.

    python -m benchmarks.tls_tax [--ranks 2,4] [--way star] [--layers 32] [--rounds 400]

The two take turns, batch by batch; medians of batches. A token has two sums a layer.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from edgerun.cluster.home import Home
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.peers import Peers
from edgerun.cluster.tls import secured
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import Link
from edgerun.cluster.wire_format import EXACT
from tests.cluster.homes import acquainted

_NUMBERS = 2049
_BATCHES = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--way", default="star")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=400)
    given = parser.parse_args()
    print("| ranks | plain us a sum | TLS us a sum | ms a token |\n|---|---|---|---|")
    for ranks in map(int, given.ranks.split(",")):
        plain_s, sealed_s = _measured(ranks, given)
        tax_ms = 1e3 * 2 * given.layers * (sealed_s - plain_s)
        print(f"| {ranks} | {1e6 * plain_s:.0f} | {1e6 * sealed_s:.0f} | {tax_ms:.2f} |", flush=True)


def _measured(ranks: int, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a sum without and with TLS."""
    with tempfile.TemporaryDirectory() as folder:
        homes = acquainted(Path(folder), *(f"rank{rank}" for rank in range(ranks)))
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
        children, me = [], 0
        for rank in range(1, ranks):
            child = os.fork()
            if child == 0:
                me = rank
                break
            children.append(child)
        try:
            pair = [_group(me, ranks, servers, homes, given.way, sealed) for sealed in (False, True)]
            took: list[list[float]] = [[], []]
            x = np.ones(_NUMBERS, np.float32)
            for _ in range(_BATCHES):
                for group, times in zip(pair, took, strict=True):
                    began = time.perf_counter()
                    for _ in range(given.rounds // _BATCHES):
                        x[:] = 1
                        group.all_reduce(x)
                    times.append((time.perf_counter() - began) / (given.rounds // _BATCHES))
            assert (x == ranks).all()
        finally:
            if me:
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)
    return statistics.median(took[0]), statistics.median(took[1])


def _group(
    me: int, ranks: int, servers: list[socket.socket], homes: list[Home], way: str, sealed: bool
) -> LinkedCollective:
    """Every rank calls those above it."""
    connections: dict[int, tuple[socket.socket, bool]] = {}
    for rank in range(me + 1, ranks):
        connection = socket.create_connection(servers[rank].getsockname())
        connection.sendall(bytes([me]))
        connections[rank] = connection, False
    for _ in range(me):
        connection, _ = servers[me].accept()
        connections[connection.recv(1)[0]] = connection, True
    links = {}
    for rank in sorted(connections):
        connection, is_server = connections[rank]
        if sealed:
            connection, _ = secured(connection, homes[me].identity, homes[me].roster, server=is_server)
        links[rank] = Link(connection, rank)
    group = LinkedCollective(Peers(me, ranks, links, EXACT, str), Way(way))
    group.all_reduce(np.ones(1, np.float32))  # nobody calls for the next group before all have this one
    return group


if __name__ == "__main__":
    main()
