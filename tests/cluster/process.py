"""A device as a process: `python -m tests.cluster.process FOLDER NAME HOST`. It listens, says where, and works: it adds
what the head says, `COUNT NUMBERS` at a time, its share of each number being 1."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from edgerun.cluster.collective import Collective
from edgerun.cluster.control import Device
from edgerun.cluster.home import Home
from edgerun.cluster.server import Server
from edgerun.events import Event


def add_up(collective: Collective, shard: Path, details: bytes) -> None:
    """Until the head announces nothing."""
    while message := collective.announce(b""):
        count, numbers = (int(word) for word in message.split())
        for _ in range(count):
            collective.all_reduce(np.ones(numbers, np.float32))


def _say(event: Event) -> None:
    print(event, flush=True)


def main() -> None:
    folder, name, host = sys.argv[1:]
    home = Home(Path(folder), Path(folder), name)
    server = Server(home, (host, 0), add_up, lambda job: Device(name, 1, 1 << 30, "reference", job), _say)
    print(f"listening {server.address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
