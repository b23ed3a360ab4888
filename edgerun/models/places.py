"""Where the rows of a pass stand: positions of a sequence, whose keys and values they read and write."""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.kernels.interface import F32
from edgerun.kernels.pages import Span
from edgerun.kv import KvSequence
from edgerun.models.rope import RopeTable


@dataclass(frozen=True, eq=False)
class Places:
    """`rows` consecutive positions of one sequence, from `start`."""

    cache: KvSequence
    start: int
    rows: int

    def part(self, part: slice) -> Places:
        """Of some of the rows."""
        return Places(self.cache, self.start + part.start, part.stop - part.start)

    def span(self, layer: int) -> Span:
        """Their keys and values of a layer."""
        return Span(self.cache.pages(layer), self.start, self.rows)

    def rotation(self, table: RopeTable) -> tuple[F32, F32]:
        """Cosines and sines (rows, rope_dim / 2)."""
        return table.at(self.start, self.rows)
