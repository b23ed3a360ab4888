"""What one step of the decoder computes: positions that follow in one sequence or in several, all in one pass over the
weights. One token of one user, a chunk of a prompt and eight users' tokens are the same call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.kv import KvSequence

Want = Literal["none", "last", "all", "hidden"]
"""Of a stretch's positions: no logits, those of the last, of all, or the final normed states of all."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """The next token ids of one sequence, and what is wanted of them."""

    sequence: KvSequence
    ids: Sequence[int] | NDArray[np.int32]
    want: Want = "last"

    def __post_init__(self) -> None:
        if self.want not in get_args(Want):
            raise UsageError(f"of a stretch none, last, all or hidden can be wanted, not {self.want!r}")


@dataclass(frozen=True, eq=False)
class Batch:
    """Stretches of different sequences. UsageError for none, or for two of one sequence."""

    stretches: Sequence[Stretch]

    def __post_init__(self) -> None:
        if not self.stretches:
            raise UsageError("a batch needs at least one stretch")
        if len({id(each.sequence) for each in self.stretches}) != len(self.stretches):
            raise UsageError("a sequence can have only one stretch in a batch")

    @property
    def rows(self) -> int:
        """Of all stretches."""
        return sum(len(each.ids) for each in self.stretches)

    def tokens(self, vocab_size: int) -> list[int]:
        """All ids (rows,), stretch after stretch. UsageError for a stretch without any, or ids outside the
        vocabulary."""
        tokens: list[int] = []
        for each in self.stretches:
            ids = each.ids
            if not len(ids) or isinstance(ids, np.ndarray) and ids.ndim != 1:
                raise UsageError("a stretch needs a list of at least one token id")
            tokens += ids.tolist() if isinstance(ids, np.ndarray) else ids
        if min(tokens) < 0 or max(tokens) >= vocab_size:
            raise UsageError(f"token ids must be 0 to {vocab_size - 1}")
        return tokens
