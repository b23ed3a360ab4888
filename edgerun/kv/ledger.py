"""What the pages of one model may take together, and who of their holders gives way.

A plan sets one context's keys and values aside, but sessions, forks, what sessions share and the last call's cache
each hold pages. Whoever needs another page asks here; nothing has to be given back, because what is held is counted
from the pages that still live, each once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Protocol, TypeVar

from edgerun.device import give_back_free_memory
from edgerun.errors import DoesNotFitError
from edgerun.kv.members import Members
from edgerun.units import format_size


class Grant(Protocol):
    """Memory that was granted. Hashed by identity."""

    n_bytes: int


class Holder(Protocol):
    """Whose grants they are, as far as the ledger cares. Hashed by identity."""

    @property
    def n_bytes(self) -> int: ...

    def make_room(self, n_bytes: int) -> None:
        """Let go of what nobody would miss, until so much is free."""
        ...

    def release(self) -> None:
        """Let go of everything."""
        ...


P = TypeVar("P", bound=Grant)


class KvLedger:
    """`limit_bytes` for all who ask; None: nobody counts. Any thread may join and count; who asks for grants, and makes
    others make room, must be the thread that may use the model now. about_to_hold: told, before there are more grants,
    how much all will have together, so that others can use what is left of the limit."""

    def __init__(self, limit_bytes: int | None, about_to_hold: Callable[[int], None] | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._about_to_hold = about_to_hold
        self.hurries = False  # whoever asks has others to turn to: refuse without a collection, which takes long
        self._holders: Members[Holder] = Members()
        self._granted: Members[Grant] = Members()

    @property
    def held_bytes(self) -> int:
        """Of all grants that live."""
        return sum(each.n_bytes for each in self._granted.all())

    def has_room(self, n_bytes: int) -> bool:
        """Whether so much may be granted without anybody making room."""
        return self.limit_bytes is None or self.held_bytes + n_bytes <= self.limit_bytes

    def join(self, holder: Holder) -> None:
        """From now on `holder` is asked to make room for others."""
        self._holders.add(holder)

    def grant(self, holder: Holder, n_bytes: int, make: Callable[[], list[P]]) -> list[P]:
        """What `make` makes: grants of `n_bytes` together.

        Before it refuses, all others let go of what nobody would miss, and those are collected that nobody can reach
        any more. Raises DoesNotFitError, and `holder` keeps what it has.
        """
        limit = self.limit_bytes
        for make_room in (None, lambda: self._others_make_room(holder, n_bytes), gc.collect):
            if make_room is gc.collect and self.hurries:
                break
            if make_room is not None:
                make_room()
                give_back_free_memory()
            held_bytes = self.held_bytes + n_bytes
            if limit is None or held_bytes <= limit:
                if self._about_to_hold is not None:
                    self._about_to_hold(held_bytes)
                made = make()
                for each in made:
                    self._granted.add(each)
                return made
        assert limit is not None
        others = sum(each is not holder and each.n_bytes > 0 for each in self._holders.all())
        raise DoesNotFitError(
            f"a session needs {format_size(holder.n_bytes + n_bytes)} for its keys and values, but of the "
            f"{format_size(limit)} that all sessions of this model may take together {others} others "
            f"hold {format_size(self.held_bytes - holder.n_bytes)}; close sessions that are no longer needed, "
            "keep their texts shorter, or load the model with more memory"
        )

    def release_all(self) -> None:
        """Everybody lets go of everything: the model is closed."""
        for holder in self._holders.all():
            holder.release()

    def _others_make_room(self, holder: Holder, n_bytes: int) -> None:
        for each in self._holders.all():
            if each is not holder:
                each.make_room(n_bytes)
