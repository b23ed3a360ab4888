"""Half of a layer that a model leaves out: some have a mixer or a feed-forward in a layer, not both."""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.kernels.interface import F32
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Product, Reduction, Tensor
from edgerun.models.places import Places
from edgerun.models.scratch import Layout, Scratch


@dataclass(frozen=True)
class Nothing:
    """x stays as it is."""

    floats = 0

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {}

    @property
    def products(self) -> tuple[Product, ...]:
        return ()

    @property
    def layouts(self) -> tuple[Layout[object], ...]:
        return ()


@dataclass(frozen=True)
class NoMixer(Nothing):
    """Positions do not see each other in this layer."""

    @property
    def kv(self) -> None:
        return None

    @property
    def state(self) -> None:
        return None

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        """As `Mixer.forward`."""


@dataclass(frozen=True)
class NoFeedForward(Nothing):
    """A layer that only mixes."""

    def forward(self, here: Here, x: F32, s: Scratch) -> None:
        """As `FeedForward.forward`."""
