"""What routers chose: which rows go to which expert, which to expect, and how many to compute together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.interface import F32, I32, Expert

EXPERT_ROWS = 1024  # rows of intermediate results of experts at a time
_FIRST_ROW = np.array([0], np.int32)
_SLOTS = [np.array([slot], np.int32) for slot in range(64)]  # made once: a token asks for some in every layer


@dataclass(frozen=True, eq=False)
class RoutedRows:
    """What a layer's router chose. A slot is row * experts used + place among its row's choices; each expert's results
    wait in `parts`, by slot, and all are summed in the router's order: so the order in which experts become ready, or
    who computes them, cannot change a sum."""

    layer: int
    normed: F32  # (T, d), what enters the feed-forward
    h: F32  # what experts are fed: (T, ..), or where each choice has an input of its own (T * used, ..) by slot
    ids: I32  # (T, used)
    weights: F32  # (T, used)
    slots_of: dict[int, I32]  # expert -> slots, ascending
    rows_of: dict[int, I32]  # expert -> the rows of h for these slots
    ahead: list[I32]  # (T, used), what the next layers' routers would choose
    parts: F32  # (T * used, ..) by slot

    @property
    def chosen(self) -> I32:
        """Experts, ascending."""
        return np.array(sorted(self.slots_of), np.int32)

    @property
    def tokens(self) -> int:
        """Rows that chose."""
        return int(self.weights.shape[0])

    @property
    def used(self) -> int:
        """Experts of a row."""
        return int(self.weights.shape[1])


def slots_by_expert(ids: I32) -> tuple[dict[int, I32], dict[int, I32]]:
    """ids (T, used) -> `RoutedRows.slots_of` and `rows_of`."""
    tokens, used = ids.shape
    if tokens == 1:
        chosen = ids[0].tolist()
        slots = _SLOTS if used <= len(_SLOTS) else [np.array([slot], np.int32) for slot in range(used)]
        return dict(zip(chosen, slots, strict=False)), dict.fromkeys(chosen, _FIRST_ROW)
    order = np.argsort(ids.reshape(-1), kind="stable").astype(np.int32)
    unique, first = np.unique(ids.reshape(-1)[order], return_index=True)
    chosen = unique.tolist()
    split = np.split(order, first[1:])
    rows = np.split(order // np.int32(used), first[1:])
    return dict(zip(chosen, split, strict=True)), dict(zip(chosen, rows, strict=True))


def likeliest(ids: I32) -> I32:
    """What rows choose, ids (T, used) -> the experts that any of them does, those wanted by most rows first."""
    if len(ids) == 1:
        only: I32 = ids[0].copy()  # the next layer's are written to the same place
        return only
    counts = np.bincount(ids.reshape(-1))
    return np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].astype(np.int32)


def bounded(experts: list[Expert], slots_of: dict[int, I32]) -> Iterator[list[Expert]]:
    """In pieces of so many rows that their intermediate results stay small."""
    some: list[Expert] = []
    rows = 0
    for expert in experts:
        more = len(slots_of[expert.id])
        if some and rows + more > EXPERT_ROWS:
            yield some
            some, rows = [], 0
        some.append(expert)
        rows += more
    yield some
