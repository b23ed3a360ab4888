"""What a device keeps of the cluster: who it is, whom it knows, what it measured of the way to them, and shards that
it was given.

Several processes of one device share it. The identity lies among the user's data, shards in the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edgerun.cluster.cables import Cables
from edgerun.cluster.identity import Identity, checked_name, forget_identity, own_identity
from edgerun.cluster.roster import Member, Roster, forget_roster, read_roster, write_roster
from edgerun.cluster.shards import ShardStore
from edgerun.errors import UsageError
from edgerun.new_files import one_at_a_time

_LOCK_S = 10.0


class Home:
    """A device's folder. Any thread may use it."""

    def __init__(self, folder: Path, cache: Path, name: str) -> None:
        self.folder = folder
        self.identity: Identity = own_identity(folder, name)
        self.shards = ShardStore(cache / "shards")
        self.offers = cache / "offers"  # of shards that this device cut for others
        self.cables = Cables(cache / "cables")
        self._lock = threading.Lock()

    @property
    def roster(self) -> Roster:
        """As it is now, this device in it."""
        return read_roster(self.folder).with_member(self.me())

    def me(self, address: str = "") -> Member:
        """This device, as others shall know it."""
        return Member(self.identity.certificate, address)

    def others(self) -> list[Member]:
        """The devices that this one knows, by name."""
        mine = self.identity.fingerprint
        return sorted((m for m in self.roster.members if m.fingerprint != mine), key=lambda member: member.name)

    def learn(self, news: Roster) -> Roster:
        """Merge what another one knows; the roster afterwards. FormatError."""
        return self._change(lambda known: known.merged(news))

    def admit(self, guest: Member) -> Roster:
        """Put a device on the roster. UsageError when another has its name: one could not be told from the other."""

        def add(known: Roster) -> Roster:
            for member in known.members:
                if member.name == guest.name and member.fingerprint != guest.fingerprint:
                    raise UsageError(f"there is a device called {guest.name} already; choose another --name")
            return known.with_member(guest)

        return self._change(add)

    def put_out(self, name: str) -> Member:
        """Take a device off the roster for good. NotFoundError."""
        gone = self.roster.named(name)
        if gone.fingerprint == self.identity.fingerprint:
            raise UsageError("this is the device itself; `edgerun cluster leave` takes it out")
        self._change(lambda known: known.without(gone.fingerprint))
        return gone

    def leave(self) -> None:
        """Forget everybody, and be somebody else from now on; shards go too."""
        forget_roster(self.folder)
        forget_identity(self.folder)
        self.shards.clear()
        self.cables.clear()

    def _change(self, change: Callable[[Roster], Roster]) -> Roster:
        with self._lock, one_at_a_time(self.folder / "roster", lambda: None, wait_s=_LOCK_S):
            before = read_roster(self.folder)
            after = change(before.with_member(self.me()))
            if after != before:
                write_roster(self.folder, after)
            return after


def open_home(data: Path, cache: Path, name: str) -> Home:
    """The home of this user's device: its folders are `data`/cluster and `cache`/cluster. `name`: for one that has
    none yet. OSError, UntrustedError, FormatError; UsageError for a name that is none."""
    return Home(data / "cluster", cache / "cluster", checked_name(name))
