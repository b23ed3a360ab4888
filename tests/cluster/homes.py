"""Devices of a test: homes that know each other, and servers in this process."""

from __future__ import annotations

from pathlib import Path

from edgerun.cluster.control import Device
from edgerun.cluster.home import Home
from edgerun.cluster.roster import Member
from edgerun.cluster.seat import Work
from edgerun.cluster.server import Server
from edgerun.events import Event


class Heard:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def text(self) -> str:
        return "\n".join(str(event) for event in self.events)


def home_of(folder: Path, name: str) -> Home:
    return Home(folder / name, folder / name, name)


def acquainted(folder: Path, *names: str) -> list[Home]:
    """Homes that were paired."""
    homes = [home_of(folder, name) for name in names]
    for home in homes:
        for other in homes:
            home.admit(Member(other.identity.certificate))
    return homes


def serving(home: Home, work: Work, events: Heard | None = None) -> Server:
    def device(job: str) -> Device:
        return Device(home.identity.name, 2, 1 << 30, "reference", job)

    return Server(home, ("127.0.0.1", 0), work, device, events or Heard())
