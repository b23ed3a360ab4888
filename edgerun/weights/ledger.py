"""Who owns which bytes of memory: one account for each use, together never more than the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgerun.errors import DoesNotFitError
from edgerun.units import format_size


@dataclass
class Ledger:
    """A budget in bytes for the whole process and what it was given out for."""

    budget_bytes: int
    accounts: dict[str, int] = field(default_factory=dict)

    @property
    def taken_bytes(self) -> int:
        """All accounts together."""
        return sum(self.accounts.values())

    @property
    def free_bytes(self) -> int:
        """What can still be taken."""
        return self.budget_bytes - self.taken_bytes

    def take(self, account: str, n_bytes: int) -> None:
        """Give out bytes. DoesNotFitError when they are not there; then nothing is given."""
        if n_bytes > self.free_bytes:
            raise DoesNotFitError(
                f"{account} needs {format_size(n_bytes)}, but {format_size(max(0, self.free_bytes))} of "
                f"{format_size(self.budget_bytes)} are left; give more memory"
            )
        self.accounts[account] = self.accounts.get(account, 0) + n_bytes

    def report(self) -> Mapping[str, int]:
        """Accounts, what is free, and the budget, in bytes."""
        return {**self.accounts, "free": self.free_bytes, "budget": self.budget_bytes}
