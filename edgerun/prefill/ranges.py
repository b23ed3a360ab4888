"""What values activations take on a text, and where a narrow grid for them should end.

A tensor-wide grid of 255 steps is spoilt by a few channels that are far larger than the rest (mllm-NPU, Xu et al.
2025). The rule: channels are sorted by their largest magnitude; if leaving out at most `most_channels` of them makes
the rest smaller by `LEAST_GAIN`, the grid ends where the rest does and the product is *shadowed*: what is cut off is
computed on the CPU and added (`shadow.py`). Else the grid covers everything and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.models.blocks.declared import ProductName
from edgerun.prefill.graphs import Range

LEAST_GAIN = 2.0


@dataclass(frozen=True)
class LayerRanges:
    """`kept`: (low, high) of each product's input by its name, and of results by "PRODUCT.OUT"; `outliers`: of products
    whose input goes beyond, the channels that do."""

    kept: Mapping[str, Range] = field(default_factory=dict)
    outliers: Mapping[ProductName, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shadowed(self) -> tuple[ProductName, ...]:
        """Products whose grid leaves something out."""
        return tuple(self.outliers)


def most_channels(channels: int) -> int:
    """How many may be left out: few enough that multiplying them apart costs next to nothing."""
    return max(8, channels // 50)


class Extremes:
    """The least and largest value of each channel that was seen."""

    def __init__(self, channels: int) -> None:
        self.low = np.full(channels, np.inf, np.float32)
        self.high = np.full(channels, -np.inf, np.float32)

    def see(self, x: F32) -> None:
        """Rows (tokens, channels)."""
        np.minimum(self.low, x.min(axis=0), out=self.low)
        np.maximum(self.high, x.max(axis=0), out=self.high)

    def whole(self) -> Range:
        """Of all channels."""
        return float(min(self.low.min(), 0.0)), float(max(self.high.max(), 0.0))

    def clipped(self) -> tuple[Range, tuple[int, ...]]:
        """The range to keep by the rule above, and the channels that it leaves out."""
        size = np.maximum(np.abs(self.low), np.abs(self.high))
        order = np.argsort(size)
        most = min(most_channels(len(size)), len(size) - 1)
        ordered = size[order]
        # leave out as few as bring the gain: the largest step down among the last channels
        tail = ordered[-most - 1 :]
        ratios = tail[1:] / np.maximum(tail[:-1], np.float32(1e-12))
        at = int(np.argmax(ratios))
        rest = order[: len(order) - most + at]
        if ordered[-1] < LEAST_GAIN * ordered[len(rest) - 1] or ratios[at] < LEAST_GAIN**0.5:
            return self.whole(), ()
        kept = float(min(self.low[rest].min(), 0.0)), float(max(self.high[rest].max(), 0.0))
        return kept, tuple(sorted(int(channel) for channel in order[len(rest) :]))
