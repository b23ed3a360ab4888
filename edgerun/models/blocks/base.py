"""What every block is given to compute with, and what it answers.

A block is a frozen declaration of one half of a layer: the mixer (attention, and other ways in which positions see
each other) or the feed-forward. It adds to the residual stream x (T, d), f32, in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np

from edgerun.errors import Cancelled
from edgerun.kernels.interface import F32, I32, Kernels
from edgerun.kernels.recording import Recording
from edgerun.kv import KvLayer, StateLayer
from edgerun.models.blocks.declared import Product, ProductName, Reduction, Tensor
from edgerun.models.found_experts import FoundExperts
from edgerun.models.places import Places
from edgerun.models.ranks import RecordedSum, Sums
from edgerun.models.rope import RopeTable
from edgerun.models.scratch import Layout, Scratch
from edgerun.models.spec import Rotation
from edgerun.weights import LayerWeights, WeightStore

Cancel = Callable[[], bool]  # whether the caller wants to stop
Decide = Callable[[Cancel, int], None]
"""What Python does between two recorded pieces, of the first so many rows: others are nobody's. Raises Cancelled."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """Launches in place of what Python decides, of a single row. lay_out: records them, of which the first may stop the
    recording for Python to do it after all; False: there are none. announce: what Python does where all is there, but
    not all that later layers will ask for."""

    layer: int
    lay_out: Callable[[Recording], bool]
    announce: Callable[[], None]


class Cut(Protocol):
    """Takes what only Python can decide, or launches in its place."""

    def __call__(self, decide: Decide, instead: Recorded | RecordedSum | None = None) -> None: ...


Watch = Callable[[int, ProductName, F32, dict[str, F32]], None]
"""Told of each product: layer, name, its input after the norm (T, cols), its parts' results before factors and biases
(T, rows); its own copies."""


@cache
def ones(cols: int) -> F32:
    """(cols,), for norms without weights. It stays: what is recorded holds its address."""
    return np.ones(cols, np.float32)


def check(cancelled: Cancel) -> None:
    """Raises Cancelled when the caller wants to stop."""
    if cancelled():
        raise Cancelled("stopped by the caller")


@dataclass(frozen=True, eq=False)
class Tools:
    """What blocks of one decoder compute with. `scratch`: buffers for so many rows; `routed` is told each mixture's
    choices, (T, used) ids; `found`: what recorded launches find of experts; `ranks`: those who have the rest of each
    layer, None where the model is whole."""

    kernels: Kernels
    store: WeightStore
    n_layers: int
    ropes: Mapping[Rotation, RopeTable]
    scratch: Callable[[int], Scratch]
    routed: Callable[[int, I32], None]
    found: FoundExperts
    ranks: Sums | None = None


@dataclass(frozen=True, eq=False)
class Here:
    """The layer that is being computed. `cut` is given what only Python can decide: it is called at once, or between
    two pieces of a recording, every time these are replayed; so it must not hold on to a sequence."""

    tools: Tools
    layer: int
    weights: LayerWeights
    cut: Cut
    watch: Watch | None = None

    @property
    def kernels(self) -> Kernels:
        """Of the tools."""
        return self.tools.kernels

    def within(self, cancelled: Cancel, rows: int) -> Here:
        """For what is computed by what was given to `cut`: there is nothing to cut there."""
        return replace(self, cut=at_once(cancelled, rows))

    @property
    def vectors(self) -> dict[str, F32]:
        """The layer's norms, biases and scales."""
        return self.weights.vectors


def at_once(cancelled: Cancel, rows: int) -> Cut:
    """Decides now."""

    def cut(decide: Decide, instead: Recorded | RecordedSum | None = None) -> None:
        decide(cancelled, rows)

    return cut


class Block(Protocol):
    """A declaration, from which all that others must know follows."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By their names without layer and `.weight`."""
        ...

    @property
    def products(self) -> tuple[Product, ...]:
        """What a prompt backend would have to compute, in order; none: it stays the decoder's."""
        ...

    @property
    def sums(self) -> tuple[Reduction, ...]:
        """Over ranks, where several divided it: of a row, in order."""
        ...

    @property
    def floats(self) -> int:
        """Of buffers and quantised copies a row, at most."""
        ...

    @property
    def layouts(self) -> tuple[Layout[Any], ...]:
        """Of all buffers that it asks of a `Scratch`."""
        ...


class Mixer(Block, Protocol):
    """How positions see each other."""

    @property
    def kv(self) -> KvLayer | None:
        """What it keeps of a position."""
        ...

    @property
    def state(self) -> StateLayer | None:
        """What it keeps of all positions together."""
        ...

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        """x += mixer(norm(x)); the rows stand at `places`."""
        ...


class FeedForward(Block, Protocol):
    """What each position does for itself, a chunk of rows at a time. (`Mixture` takes all rows of a wave at once.)"""

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        """x += feed_forward(norm(x))."""
        ...
