"""How long sums over ranks take on links of many kinds, beside what the model says of them.

    python -m benchmarks.allreduce --ranks 4 --delays 0.5,1,2,5 --rates 100,1000 [--bytes 8192] [--rounds 60]

Ranks are processes in network namespaces, joined by a switch in user space (needs root). The model's numbers are those
that the group measured itself (`cluster.links`) just before. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgerun.cluster.head import Head, Shard, connect
from edgerun.cluster.linked import LinkedCollective
from edgerun.cluster.links import Links, predict_s
from edgerun.cluster.shards import make_offer
from edgerun.cluster.ways import WAY_NAMES
from edgerun.events import ignore
from tests.cluster.homes import acquainted
from tests.cluster.lab import can_emulate, lab, line_with, running

# Of one sum the time says little: who begins late finds the others' parts there, and makes them wait in the next
_BATCHES = 6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--delays", default="0.5,1,2,5", help="one way, in ms")
    parser.add_argument("--rates", default="100,1000", help="in Mb/s")
    parser.add_argument("--bytes", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    if not can_emulate():
        raise SystemExit("this needs root, `ip` and /dev/net/tun")
    print(
        "| delay ms | Mb/s | hop ms | way | model ms | measured ms | measured / model |\n|---|---|---|---|---|---|---|"
    )
    ratios = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(folder, given.ranks))
        names = [f"rank{i}" for i in range(given.ranks)]
        homes = acquainted(folder, *names)
        addresses = []
        for device, name in zip(here.devices[1:], names[1:], strict=True):
            arguments = ("-m", "tests.cluster.process", str(folder / name), name, device.address)
            process = stack.enter_context(running(device.start(*arguments)))
            addresses.append((name, line_with(process, "listening").split()[1]))
        with here.inside(here.devices[0]):
            head = Head(homes[0], connect(homes[0], addresses, ignore), ignore)
            stack.callback(head.close)
            for delay_ms in given.delays.split(","):
                for rate in given.rates.split(","):
                    here.tell(f"delay {float(delay_ms) / 1000}")
                    here.tell(f"rate {float(rate) * 1e6}")
                    homes[0].cables.clear()  # the next ones are others
                    links = _settled(head, given)
                    for way in WAY_NAMES:
                        model = predict_s(way, links, given.ranks, given.bytes)
                        measured = _measured(_begin(head, way, given), given)
                        ratios.append(measured / model)
                        print(
                            f"| {delay_ms} | {rate} | {1e3 * links.hop_s:.2f} | {way} | {1e3 * model:.2f} "
                            f"| {1e3 * measured:.2f} | {ratios[-1]:.2f} |",
                            flush=True,
                        )
    within = sum(0.75 <= ratio <= 1.25 for ratio in ratios)
    print(f"\n{within} of {len(ratios)} within 25 %; median of measured / model {statistics.median(ratios):.2f}")


def _begin(head: Head, way: str, given: argparse.Namespace) -> LinkedCollective:
    shard = Shard(make_offer(4, lambda at, count: bytes(4)), lambda at, count: bytes(4))
    return head.begin([shard] * (given.ranks - 1), way, "f32", numbers=given.bytes // 4)


def _settled(head: Head, given: argparse.Namespace) -> Links:
    group = _begin(head, "auto", given)
    links = head.links
    group.announce(b"")
    assert links is not None
    return links


def _measured(group: LinkedCollective, given: argparse.Namespace) -> float:
    x = np.ones(given.bytes // 4, np.float32)
    group.announce(f"{given.rounds // _BATCHES * _BATCHES} {x.size}".encode())
    times = []
    for _ in range(_BATCHES):
        started = time.perf_counter()
        for _ in range(given.rounds // _BATCHES):
            x[:] = 1
            group.all_reduce(x)
            assert (x == given.ranks).all()
        times.append((time.perf_counter() - started) / (given.rounds // _BATCHES))
    group.announce(b"")
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
