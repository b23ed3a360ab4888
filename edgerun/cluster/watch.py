"""What the devices of this house are doing, asked of them again and again."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgerun.cluster.control import Device, Load, Seen
from edgerun.cluster.home import Home
from edgerun.cluster.rank_times import Split, straggler
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.errors import EdgerunError

_STALE_S = 3.0  # a head that said nothing for so long computes nothing


@dataclass(frozen=True)
class Watched:
    """A device. device: what it has, None where it does not answer; load: what it did in the group lately, None where
    it is in none; is_slowest: the others wait for it."""

    name: str
    device: Device | None
    load: Load | None
    is_slowest: bool


class Watch:
    """Connections to all devices that this one knows, and to its own where that takes part. `close` it.

    own_address: where this device would listen."""

    def __init__(self, home: Home, own_address: str) -> None:
        self._home = home
        self._own = Member(home.identity.certificate, own_address)
        self._remotes: dict[str, Remote] = {}

    def look(self) -> list[Watched]:
        """All devices now, the group's first and in its order; what the group did is what its head said last."""
        members = [self._own, *self._home.others()]
        with ThreadPoolExecutor(len(members)) as threads:
            answers = list(threads.map(self._ask, members))
        told = [seen for _, seen in answers if seen is not None and seen.loads and seen.age_s < _STALE_S]
        loads = min(told, key=lambda seen: seen.age_s).loads if told else ()
        slowest = straggler([Split(each.compute_s, each.wait_s, each.wire_s, each.disk_s) for each in loads])
        devices = {member.name: device for member, (device, _) in zip(members, answers, strict=True)}
        found = [Watched(each.name, devices.pop(each.name, None), each, at == slowest) for at, each in enumerate(loads)]
        if devices.get(self._own.name, self) is None:
            del devices[self._own.name]  # it only looks on
        return found + [Watched(name, device, None, False) for name, device in devices.items()]

    def close(self) -> None:
        for remote in self._remotes.values():
            remote.close()

    def _ask(self, member: Member) -> tuple[Device | None, Seen | None]:
        """None where it does not answer; it is asked again at the next look."""
        key = member.fingerprint
        try:
            remote = self._remotes.get(key) or Remote(self._home, member)
            self._remotes[key] = remote
            return remote.device, remote.look()
        except EdgerunError:
            remote_gone = self._remotes.pop(key, None)
            if remote_gone is not None:
                with contextlib.suppress(EdgerunError):
                    remote_gone.close()
            return None, None
