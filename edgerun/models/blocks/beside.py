"""What some mixtures of experts have beside these."""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.models.blocks.absent import AbsentFeedForward
from edgerun.models.blocks.dense import Dense


@dataclass(frozen=True)
class Beside:
    """A feed-forward that every token passes beside the experts, each with norms of its own (Gemma 4): what comes
    before the sum. experts_norm: of the experts' sum."""

    dense: Dense | AbsentFeedForward
    experts_norm: str
