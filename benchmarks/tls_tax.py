"""What encryption costs a token: sums of 8 KiB among processes of this machine's loopback, with TLS 1.3 and without.

    python -m benchmarks.tls_tax [--ranks 2,4] [--way star] [--layers 32] [--rounds 1000] [--by launches|python]

The two take turns, batch by batch; medians of batches. A token has two sums a layer. --by: who sums: launches of a
recording, as a token's sums are made, or Python, which makes them where OpenSSL cannot be called by kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgerun.cluster.collective import F32
from edgerun.cluster.home import Home
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.peers import Peers
from edgerun.cluster.tls import secured
from edgerun.cluster.units import RankUnits, in_order
from edgerun.cluster.ways import Way
from edgerun.cluster.wire import Link
from edgerun.cluster.wire_format import EXACT
from edgerun.kernels import Kernels, load_kernels
from tests.cluster.homes import acquainted

_NUMBERS = 2049
_BATCHES = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--way", default="star")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--by", choices=("launches", "python"), default="launches")
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
            groups = [_group(me, ranks, servers, homes, given.way, sealed) for sealed in (False, True)]
            took: list[list[float]] = [[], []]
            count = given.rounds // _BATCHES
            with contextlib.closing(load_kernels(threads=1, types=[])) as kernels:
                sums = _by_launches if given.by == "launches" else _by_python
                batches = [sums(group, kernels, count) for group in groups]
                for _ in range(_BATCHES):
                    for batch, times in zip(batches, took, strict=True):
                        began = time.perf_counter()
                        summed = batch()
                        times.append((time.perf_counter() - began) / count)
                        assert (summed == ranks).all()
        finally:
            if me:
                os._exit(0)
        for child in children:
            os.waitpid(child, 0)
    return statistics.median(took[0]), statistics.median(took[1])


def _by_python(group: LinkedCollective, kernels: Kernels, count: int) -> Callable[[], F32]:
    """So many sums."""
    x = np.empty(_NUMBERS, np.float32)

    def batch() -> F32:
        for _ in range(count):
            x[:] = 1
            group.all_reduce(x)
        return x

    return batch


def _by_launches(group: LinkedCollective, kernels: Kernels, count: int) -> Callable[[], F32]:
    """The same, as a recording of a token makes them: one launch each."""
    x, out = np.ones(_NUMBERS - 1, np.float32), np.empty(_NUMBERS - 1, np.float32)
    sums, recording = group.recorded, kernels.recording
    assert sums is not None
    script = sums.script([x], RankUnits((), ((0, None),), in_order(group.size)), out)
    assert script is not None
    with recording.record() as recorder:
        for _ in range(count):
            recording.lay_out_sum(script.slots, sums.state, script.numbers)
    program = recorder.program()

    def batch() -> F32:
        at = 0
        while at < count:
            sums.begin(script.numbers)
            at = recording.run_program(program, at)
            if sums.stopped() is not None:  # a rank was late
                sums.finish(script, time.perf_counter)
            sums.made()
        return out

    return batch


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
