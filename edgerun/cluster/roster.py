"""The devices that belong together, as one of them knows it: a file of pins.

Whoever was paired with one device is known to all: each tells the others whom it has taken in and whom it has put out,
and what two know is merged. To have been put out wins, for good: who wants back in makes a new key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgerun.cluster.identity import fingerprint_of, name_in
from edgerun.errors import FormatError, NotFoundError
from edgerun.trust import open_folder

MOST_MEMBERS = 64
_MOST_REVOKED = 4096
_FILE = "roster.msgpack"
_VERSION = 1


class Member(msgspec.Struct, frozen=True):
    """A device of the group. `address` is where it was heard of last: "host:port", "" for unknown."""

    certificate: str
    address: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.certificate)

    @property
    def name(self) -> str:
        return name_in(self.certificate)


class Roster(msgspec.Struct, frozen=True):
    """Who is in and who is out, this device among them."""

    members: tuple[Member, ...] = ()
    revoked: tuple[str, ...] = ()  # fingerprints
    version: int = _VERSION

    def find(self, fingerprint: str) -> Member | None:
        """The member of that fingerprint."""
        return next((member for member in self.members if member.fingerprint == fingerprint), None)

    def named(self, name: str) -> Member:
        """The member of a name, or of a fingerprint's beginning. NotFoundError unless there is exactly one."""
        found = [m for m in self.members if m.name == name or (len(name) >= 8 and m.fingerprint.startswith(name))]
        if len(found) != 1:
            known = ", ".join(sorted(member.name for member in self.members)) or "none"
            several = f"{len(found)} devices are called {name!r}; give the fingerprint of one"
            raise NotFoundError(several if found else f"no device is called {name!r}; there are: {known}")
        return found[0]

    def with_member(self, member: Member) -> Roster:
        """With a device added, or heard of somewhere else."""
        return self.merged(Roster((member,)))

    def without(self, fingerprint: str) -> Roster:
        """With a device put out."""
        return self.merged(Roster((), (fingerprint,)))

    def merged(self, other: Roster) -> Roster:
        """What both know; of addresses the other's. FormatError where that is more than a group can have."""
        revoked = {*self.revoked, *other.revoked}
        members = {member.fingerprint: member for member in self.members}
        for member in other.members:
            known = members.get(member.fingerprint)
            members[member.fingerprint] = member if known is None or member.address else known
        kept = [members[key] for key in sorted(members) if key not in revoked]
        if len(kept) > MOST_MEMBERS or len(revoked) > _MOST_REVOKED:
            raise FormatError(f"{len(kept)} devices, {len(revoked)} put out; a group has at most {MOST_MEMBERS}")
        return Roster(tuple(kept), tuple(sorted(revoked)))


def checked_roster(roster: Roster) -> Roster:
    """One that came from elsewhere. FormatError unless each member is a device and it is of this version."""
    if roster.version != _VERSION:
        raise FormatError(f"a roster of version {roster.version}; this edgerun reads {_VERSION}")
    for member in roster.members:
        name_in(member.certificate)
        if len(member.address) > 300:
            raise FormatError("an address of more than 300 characters")
    return Roster().merged(roster)


def read_roster(folder: Path) -> Roster:
    """The one kept in `folder`; an empty one when there is none. OSError, UntrustedError, FormatError."""
    with open_folder(folder, make=True) as kept:
        try:
            data = kept.read(_FILE, most_bytes=1 << 20)
        except FileNotFoundError:
            return Roster()
    try:
        return checked_roster(msgspec.msgpack.decode(data, type=Roster))
    except (msgspec.DecodeError, FormatError) as error:
        raise FormatError(f"{folder / _FILE}: {error}; `edgerun cluster leave` makes a new one") from error


def write_roster(folder: Path, roster: Roster) -> None:
    """Keep it. OSError, UntrustedError."""
    with open_folder(folder, make=True) as kept:
        kept.replace(_FILE, [msgspec.msgpack.encode(roster)])


def forget_roster(folder: Path) -> None:
    """Know nobody any more."""
    with open_folder(folder, make=True) as kept:
        kept.remove(_FILE)


def pins(members: Iterable[Member]) -> str:
    """Their certificates, as `ssl` takes those that it shall trust."""
    return "".join(member.certificate.strip() + "\n" for member in members)
