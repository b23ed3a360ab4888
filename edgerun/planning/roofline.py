"""Every operation against the limits of a device: how near to them it is, and which of them binds (Williams et al.
2009).

An operation can take no less than its bytes from memory take, and no less than its arithmetic takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgerun.planning.costs import Operation


@dataclass(frozen=True)
class Limits:
    """Of a device: bytes/s from memory, operations/s."""

    bandwidth_bytes_per_s: float
    peak_ops_per_s: float

    @property
    def ridge(self) -> float:
        """Operations a byte above which computing binds."""
        return self.peak_ops_per_s / self.bandwidth_bytes_per_s


@dataclass(frozen=True)
class RooflinePoint:
    """Operations of one name, of all layers together. limit_s: what they cannot take less than; seconds: what they
    took, or are predicted to."""

    name: str
    flops: float
    memory_bytes: float
    limit_s: float
    seconds: float
    binds: Literal["memory", "computing"]

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / max(1.0, self.memory_bytes)

    @property
    def share_of_limit(self) -> float:
        """1: at the limit; 0.5: takes twice what it must."""
        return self.limit_s / self.seconds if self.seconds > 0 else 0.0


def roofline(pairs: Iterable[tuple[Operation, float]], limits: Limits) -> list[RooflinePoint]:
    """(operation, seconds) of a pass, by name, what takes longest first."""
    found: dict[str, list[tuple[Operation, float]]] = {}
    for operation, seconds in pairs:
        found.setdefault(operation.name, []).append((operation, seconds))
    points = []
    for name, some in found.items():
        flops = sum(each.flops for each, _ in some)
        n_bytes = sum(each.memory_bytes for each, _ in some)
        memory_s, compute_s = n_bytes / limits.bandwidth_bytes_per_s, flops / limits.peak_ops_per_s
        seconds = sum(seconds for _, seconds in some)
        binds: Literal["memory", "computing"] = "memory" if memory_s >= compute_s else "computing"
        points.append(RooflinePoint(name, flops, n_bytes, max(memory_s, compute_s), seconds, binds))
    return sorted(points, key=lambda point: -point.seconds)
