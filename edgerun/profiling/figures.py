"""Means, deviations, percentiles, and how sure a ratio of two engines is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t for a two-sided 95 % interval, by degrees of freedom; beyond the table it is nearly the normal's
_T95 = (
    *(12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Ratio:
    """Of two engines' rates in runs that took turns: the geometric mean, and between `low` and `high` with 95 %
    confidence. Both are None with fewer than two pairs."""

    value: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        sure = "" if self.low is None or self.high is None else f" (95 %: {self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{sure}"


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Of a sample; None with fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Of rates that were measured in turns, pair by pair: what slows both of a pair cancels out. None without a
    pair."""
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=False) if one > 0 and other > 0]
    if not logs:
        return None
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(middle), None, None, len(logs))
    t = _T95[len(logs) - 2] if len(logs) - 2 < len(_T95) else 1.96
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(logs))
