"""What the ranks of a group sum up within a layer: partial results of a product whose columns they divided, and the
squares of what a norm goes over. Where a model is whole, nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.models.blocks.base import Cancel, Here
from edgerun.models.ranks import Sums
from edgerun.models.spec import Units

Normed = tuple[F32, F32, int]
"""x (T, cols), the norm's weights (cols,), and how many columns all ranks have together."""


def norm_over_ranks(here: Here, inputs: Sequence[Normed], eps: float, units: Units | None = None) -> None:
    """RMSNorm of each input, in place, over the columns of all ranks. units: of these columns, where what is summed up
    shall not depend on who has which."""
    ranks = here.tools.ranks
    if ranks is None:
        for x, weight, _ in inputs:
            here.kernels.rms_norm(x, weight, eps, x)
    else:
        here.cut(partial(_norm, ranks, inputs, eps, units))


def _norm(ranks: Sums, inputs: Sequence[Normed], eps: float, units: Units | None, cancelled: Cancel, rows: int) -> None:
    squares = np.empty((rows, len(inputs)), np.float32)
    if units is None:
        for index, (x, _, _) in enumerate(inputs):
            squares[:, index] = np.square(x[:rows]).sum(axis=1)
        ranks.all_reduce(squares)
    else:
        held = len(units.held)
        each = np.stack([np.square(x[:rows]).reshape(rows, held, -1).sum(axis=2) for x, _, _ in inputs])
        parts = np.ascontiguousarray(each.transpose(2, 1, 0))  # (units, rows, inputs) f32
        ranks.add_units(list(parts), units, squares)
    for index, (x, weight, cols) in enumerate(inputs):
        x[:rows] *= weight / np.sqrt(squares[:, index : index + 1] / np.float32(cols) + np.float32(eps))
        x[rows:] = x[rows - 1]


def sum_of_units(here: Here, units: Units, parts: Sequence[F32], t: F32) -> None:
    """t (T, d) = the sum of all ranks' units, of which this one's results are `parts`, (T, d) each."""
    ranks = here.tools.ranks
    assert ranks is not None  # whoever is alone with units adds them, too
    here.cut(partial(add_units, ranks, units, parts, t), ranks.recorded(parts, units, t))


def add_units(ranks: Sums, units: Units, parts: Sequence[F32], t: F32, cancelled: Cancel, rows: int) -> None:
    """The same, now: of the first so many rows."""
    if rows == len(t):
        ranks.add_units(parts, units, t)
        return
    ranks.add_units([part[:rows] for part in parts], units, t[:rows])
    t[rows:] = t[rows - 1]  # as `add_up`


def sum_over_ranks(here: Here, t: F32) -> None:
    """t (T, d), a part of the result on each rank, becomes all of it."""
    ranks = here.tools.ranks
    if ranks is not None:
        here.cut(partial(add_up, ranks, t), ranks.recorded([t], None, t))


def add_up(ranks: Sums, t: F32, cancelled: Cancel, rows: int) -> None:
    """The same, now: of the first so many rows."""
    if rows == len(t):
        ranks.all_reduce(t)
        return
    ranks.all_reduce(t[:rows])
    t[rows:] = t[rows - 1]  # nobody's rows are copies of the last: while a step is recorded they write what it writes
