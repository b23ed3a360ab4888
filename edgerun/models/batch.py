"""What goes through the model together: stretches of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Want = Literal["none", "last", "all", "hidden"]


@dataclass(frozen=True)
class Stretch:
    """Consecutive ids of one sequence, to be appended to it. want: logits of none, the last or all of them, or all
    final hidden states."""

    sequence: Any
    ids: Sequence[int]
    want: Want = "last"


@dataclass(frozen=True)
class Batch:
    """Stretches of different sequences."""

    stretches: tuple[Stretch, ...]
