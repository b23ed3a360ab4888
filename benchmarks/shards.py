"""What devices that have shards already spare the head, which hands shards out.

    python -m benchmarks.shards [--devices 4] [--mb 64] [--delay 0.3] [--rates 100,1000]

Devices are processes in network namespaces (needs root), with TLS, on links of so many Mb/s. First each gets a shard of
its own (random bytes) from the head, all at once; then each needs that of the next one, as when ranks move because a
device came or went: twice, from the head alone and from whoever has it. Prints the time and what the head sent.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from edgerun.cluster.control import Offer
from edgerun.cluster.holders import Holders
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.shards import make_offer
from edgerun.events import ignore
from tests.cluster.homes import acquainted
from tests.cluster.lab import can_emulate, lab, line_with, running


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--mb", type=int, default=64, help="of a shard")
    parser.add_argument("--delay", type=float, default=0.3, help="one way, in ms")
    parser.add_argument("--rates", default="100,1000", help="in Mb/s")
    given = parser.parse_args()
    if not can_emulate():
        raise SystemExit("this needs root, `ip` and /dev/net/tun")
    print("| Mb/s | | s | MB sent by the head |\n|---|---|---|---|")
    for rate in map(float, given.rates.split(",")):
        _measure(given.devices, given.mb << 20, given.delay / 1e3, rate)


def _measure(count: int, n_bytes: int, delay_s: float, mbit_s: float) -> None:
    names = ["desk", *(f"device{i}" for i in range(1, count))]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(folder, count, delay_s=delay_s, bits_per_s=mbit_s * 1e6))
        homes, members = acquainted(folder, *names), []
        for device, home, name in zip(here.devices[1:], homes[1:], names[1:], strict=True):
            process = device.start("-m", "tests.cluster.process", str(folder / name), name, device.address)
            stack.enter_context(running(process))
            members.append(Member(home.identity.certificate, line_with(process, "listening").split()[1]))
        stack.enter_context(here.inside(here.devices[0]))
        remotes = [Remote(homes[0], member) for member in members]
        for remote in remotes:
            stack.callback(remote.close)
        for what, holders in (("from the head", None), ("from whoever has it", Holders())):
            shards = [os.urandom(n_bytes) for _ in remotes]
            first_s, sent = _given(remotes, shards, holders or Holders())
            if holders is None:
                print(f"| {mbit_s:.0f} | each its own | {first_s:.1f} | {sent / 1e6:.0f} |", flush=True)
            moved_s, sent = _given(remotes, [*shards[1:], shards[0]], holders or Holders())
            print(f"| {mbit_s:.0f} | each the next one's, {what} | {moved_s:.1f} | {sent / 1e6:.0f} |", flush=True)


def _given(remotes: Sequence[Remote], shards: Sequence[bytes], holders: Holders) -> tuple[float, int]:
    """Seconds until all have theirs, given at once, and bytes that the head sent."""

    def give(remote: Remote, shard: bytes, offer: Offer) -> int:
        return remote.give(offer, lambda at, size: shard[at : at + size], ignore, holders)

    offers = [make_offer(len(shard), lambda at, size, shard=shard: shard[at : at + size]) for shard in shards]
    began = time.monotonic()
    with ThreadPoolExecutor(len(remotes)) as threads:
        sent = sum(threads.map(give, remotes, shards, offers))
    return time.monotonic() - began, sent


if __name__ == "__main__":
    main()
