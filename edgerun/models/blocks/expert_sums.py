"""What a mixture's experts give, row by row, and the buffers in which it comes together."""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.kernels.interface import F32, I32
from edgerun.models.scratch import Role, Take


@dataclass(frozen=True, eq=False)
class RowsResults:
    """Of T rows: parts (T * used, width) what the experts that each has chosen gave, in the router's order; ids and
    weights (T, used) of these; normed (T, d) what enters the feed-forward."""

    parts: F32
    ids: I32
    weights: F32
    normed: F32

    def of_rows(self, rows: slice) -> RowsResults:
        """Of some of the rows."""
        used = self.ids.shape[1]
        slots = slice(rows.start * used, rows.stop * used)
        return RowsResults(self.parts[slots], self.ids[rows], self.weights[rows], self.normed[rows])


class Sums:
    """Of T rows: total (T, d) the sum of all; inner (T, latent) that of experts that work in something narrower, and
    wide (T, d) what is made of it: without columns where there is none."""

    def __init__(self, layout: SumsLayout, take: Take) -> None:
        d, latent = layout.d_model, layout.latent
        self.total, self.inner, self.wide = take(d), take(latent), take(d if latent else 0)


@dataclass(frozen=True)
class SumsLayout:
    """Of `Sums`. latent: the width that experts work in; 0: d_model."""

    d_model: int
    latent: int
    role: Role = "sums"

    @property
    def widths(self) -> tuple[int, ...]:
        return self.d_model, self.latent, self.d_model if self.latent else 0

    def make(self, rows: int, take: Take) -> Sums:
        return Sums(self, take)
