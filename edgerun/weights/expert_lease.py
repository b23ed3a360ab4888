"""What a layer's experts are asked for by."""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue

from edgerun.weights.expert_slots import Entry


@dataclass(eq=False)
class Lease:
    """Some experts of a layer, pinned while it lasts."""

    layer: int
    ready: list[Entry] = field(default_factory=list)
    pending: list[Entry] = field(default_factory=list)  # on their way
    later: list[int] = field(default_factory=list)  # ids that have no slot yet
    news: SimpleQueue[None] = field(default_factory=SimpleQueue)  # something landed, or a slot may have become free
