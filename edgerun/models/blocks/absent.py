"""Half of a layer of which this rank of a group holds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.kv import KvLayer, StateLayer
from edgerun.models.blocks.base import Cancel, Here
from edgerun.models.blocks.declared import Product, Reduction, Tensor
from edgerun.models.blocks.products import add_result, scale_and_bias
from edgerun.models.blocks.sums import add_units, add_up
from edgerun.models.places import Places
from edgerun.models.ranks import Sums
from edgerun.models.scratch import Layout, Scratch


@dataclass(frozen=True)
class Absent:
    """It takes part in what is summed up, and adds the sum to x.

    output: the product that is divided; squares: how many norms over all ranks' columns come before it, in each of the
    reductions that they need."""

    output: Product
    squares: tuple[int, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is done with the sum."""
        name, rows = self.output.parts[0].tensor, self.output.rows
        found = {f"{name}.bias": Tensor((rows,), False), f"{name}.scale": Tensor((1,), False)}
        if self.output.post_norm:
            found[self.output.post_norm] = Tensor((rows,))
        return found

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        count = 0 if self.output.units is None else self.output.units.count
        return (*(Reduction(squares, count) for squares in self.squares), Reduction(self.output.rows, count))

    @property
    def floats(self) -> int:
        return 0

    @property
    def layouts(self) -> tuple[Layout[object], ...]:
        return ()

    def add_sum(self, here: Here, x: F32, t: F32) -> None:
        """x (T, d) += what the other ranks computed. t (T, d): scratch."""
        ranks = here.tools.ranks
        assert ranks is not None  # whoever holds nothing is not alone
        here.cut(partial(_take_part, ranks, self, t))
        scale_and_bias(here, self.output.parts[0].tensor, t)
        add_result(here.kernels, here.vectors, self.output, t, x)


def _take_part(ranks: Sums, absent: Absent, t: F32, cancelled: Cancel, rows: int) -> None:
    units = absent.output.units
    for count in absent.squares:
        squares = np.zeros((rows, count), np.float32)
        if units is None:
            ranks.all_reduce(squares)
        else:
            ranks.add_units([], units, squares)
    if units is None:
        t[:] = 0
        add_up(ranks, t, cancelled, rows)
    else:
        add_units(ranks, units, [], t, cancelled, rows)


@dataclass(frozen=True)
class AbsentMixer(Absent):
    """`kv`, `state`: what the rank keeps of a position and of all together, which takes no memory; None: nobody keeps
    such."""

    kv: KvLayer | None
    state: StateLayer | None = None

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        """As `Mixer.forward`."""
        self.add_sum(here, x, s.t)


@dataclass(frozen=True)
class AbsentFeedForward(Absent):
    """A feed-forward without a column."""

    def add(self, here: Here, x: F32, out: F32, s: Scratch) -> None:
        """As `Dense.add`."""
        self.add_sum(here, out, s.t)

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        """As `FeedForward.forward`."""
        self.add_sum(here, x, s.t)
