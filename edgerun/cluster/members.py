"""What a person does with the cluster: take part, look around, put a device out, leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from edgerun.cluster.control import Device
from edgerun.cluster.dial import PORT, dial_host, format_address, parse_address
from edgerun.cluster.discovery import Advert, find_devices
from edgerun.cluster.home import Home
from edgerun.cluster.pairing import checked_code, join_host
from edgerun.cluster.remote import Remote
from edgerun.cluster.roster import Member
from edgerun.cluster.seat import Work
from edgerun.cluster.server import Server
from edgerun.device.cpu import default_threads
from edgerun.device.memory import memory_limits
from edgerun.errors import EdgerunError, NetworkError, NotFoundError, PutOutError
from edgerun.events import EventSink, Notice
from edgerun.planning.quick_rates import QuickRates

_ALL = "0.0.0.0"
_FIND_S = 3.0


@dataclass(frozen=True)
class Standing:
    """A device, as it is found now. `why`: it could not be reached, then there is no `device`; has_put_us_out: it is
    there, and knows this device no more."""

    member: Member
    address: str
    device: Device | None
    round_trip_s: float
    why: str
    has_put_us_out: bool = False


@dataclass(frozen=True)
class Untold:
    """Names of devices that could not be told: that did not answer, and that had put this device out."""

    silent: tuple[str, ...] = ()
    refusing: tuple[str, ...] = ()


def parse_listen(text: str) -> tuple[str, int]:
    """Where to listen: "lan" is every network of this device; else an address. UsageError."""
    return (_ALL, PORT) if text == "lan" else parse_address(text)


@dataclass(frozen=True)
class Offered:
    """What of this device others may have; None: what there is. rates: 0 where they were not measured."""

    kernels: str = "auto"
    threads: int | None = None
    memory_bytes: int | None = None
    rates: QuickRates = QuickRates(0.0, 0.0)

    def now(self, name: str, job: str) -> Device:
        """As others shall see it."""
        available = memory_limits().available_bytes
        memory_bytes = available if self.memory_bytes is None else min(available, self.memory_bytes)
        cores = self.threads or default_threads()
        return Device(name, cores, memory_bytes, self.kernels, job, **vars(self.rates))


@contextmanager
def taking_part(
    home: Home, listen: tuple[str, int], work: Work, offered: Offered, events: EventSink
) -> Iterator[Server]:
    """The device listens, the house is told where (unless only this machine could hear it), and so is every member
    that can be reached."""
    name = home.identity.name
    with ExitStack() as stack:
        server = Server(home, listen, work, lambda job: offered.now(name, job), events)
        stack.callback(server.close)
        host, port = parse_address(server.address)
        address = f":{port}" if host in (_ALL, "::") else server.address
        if not host.startswith("127."):
            try:
                stack.callback(Advert(home.identity.fingerprint, name, port).close)
            except NetworkError as error:
                events(Notice(str(error)))
        for standing in look_around(home, own_address=address):
            if standing.why:
                events(Notice(f"{standing.member.name} does not answer now"))
        yield server


def join(home: Home, code: str, peer: str | None, address: str, events: EventSink) -> Member:
    """Have the device that shows the code take this one in; who that was. NetworkError when nobody does."""
    code = checked_code(code)
    if peer is not None:
        return _join_at(home, code, peer, address)
    found = [each for each in find_devices(_FIND_S, bool) if each.fingerprint != home.identity.fingerprint]
    if not found:
        raise NetworkError("no device says that it is there; give --peer HOST:PORT as the other one shows it")
    if len(found) > 1:
        names = ", ".join(f"{each.name} at {each.address}" for each in found)
        raise NetworkError(f"several devices are there ({names}); give --peer for the one that shows the code")
    events(Notice(f"found {found[0].name} at {found[0].address}"))
    return _join_at(home, code, found[0].address, address)


def _join_at(home: Home, code: str, peer: str, address: str) -> Member:
    peer = format_address(*parse_address(peer))
    channel = dial_host(peer)
    with contextlib.closing(channel):
        roster, host = join_host(channel, code, home.me(address))
    known = home.learn(roster)
    member = known.find(host)
    if member is None:
        raise NotFoundError("the device that was joined is not on its own list")
    member = Member(member.certificate, peer)
    home.learn(type(known)((member,)))
    return member


def look_around(home: Home, *, own_address: str = "", find: bool = False) -> list[Standing]:
    """All other devices and whether they answer; `find`: whoever does not where it was is looked for in the house."""
    members = home.others()
    if not members:
        return []
    with ThreadPoolExecutor(min(16, len(members))) as threads:
        standings = list(threads.map(lambda member: _standing(home, member, member.address, own_address), members))
    lost = {each.member.fingerprint for each in standings if each.why and not each.has_put_us_out}
    if not find or not lost:
        return standings
    said = _said_where()
    return [
        _standing(home, standing.member, said[standing.member.fingerprint], own_address)
        if standing.member.fingerprint in lost & set(said)
        else standing
        for standing in standings
    ]


def leave(home: Home) -> Untold:
    """Put this device out everywhere, and forget everybody."""
    silent, refusing = [], []
    for member in home.others():
        try:
            remote = Remote(home, member)
            with contextlib.closing(remote):
                remote.put_me_out()
        except PutOutError:
            refusing.append(member.name)
        except EdgerunError:
            silent.append(member.name)
    home.leave()
    return Untold(tuple(silent), tuple(refusing))


def forget(home: Home, name: str) -> tuple[Member, Untold]:
    """Put a device out, and tell the others; those who do not answer hear of it later. NotFoundError."""
    gone = home.put_out(name)
    untold = [standing for standing in look_around(home) if standing.why]
    refusing = tuple(each.member.name for each in untold if each.has_put_us_out)
    return gone, Untold(tuple(each.member.name for each in untold if not each.has_put_us_out), refusing)


def _said_where() -> dict[str, str]:
    with contextlib.suppress(NetworkError):
        return {each.fingerprint: each.address for each in find_devices(_FIND_S)}
    return {}


def _standing(home: Home, member: Member, address: str, own_address: str) -> Standing:
    try:
        remote = Remote(home, member, address, own_address=own_address)
    except EdgerunError as error:
        return Standing(member, address, None, 0.0, str(error), isinstance(error, PutOutError))
    with contextlib.closing(remote):
        return Standing(member, address, remote.device, remote.hello_s, "")
