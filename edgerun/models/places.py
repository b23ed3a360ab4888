"""Where the rows of a pass stand: runs of consecutive positions, each of one sequence, whose keys and values they read
and write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.kernels.pages import Span
from edgerun.kernels.states import I64, StateRows
from edgerun.kv import KvSequence
from edgerun.models.batch import Want
from edgerun.models.chunks import chunks
from edgerun.models.rope import RopeTable

Rotations = dict[RopeTable, tuple[F32, F32]]
"""Cosines and sines (rows, rope_dim / 2) by their table."""


@dataclass(frozen=True, eq=False)
class Run:
    """`rows` consecutive positions of a sequence, from `start`."""

    sequence: KvSequence
    start: int
    rows: int


@dataclass(frozen=True, eq=False)
class Pass:
    """Rows that go through all layers together, and the numbers of those whose logits are wanted, ascending.
    few: by recorded launches."""

    runs: tuple[Run, ...]
    wanted: Sequence[int]
    few: bool
    inputs: F32 | None = None  # what layers are fed beside, (layers, rows, width)

    @property
    def rows(self) -> int:
        """Of all runs."""
        return sum(run.rows for run in self.runs)


@dataclass(eq=False)
class Wave:
    """Rows of prompts, x (T, width), on their way through the layers, of which they have passed so many. Other steps
    may be made meanwhile, as long as no sequence of theirs changes (`Decoder.start`)."""

    wants: tuple[Want, ...]  # of each run, what is wanted of it
    task: Pass
    x: F32
    layers: int = 0


class Places:
    """Of all rows, run after run. rotations: those that are known; states: the table of `StateRows`, if it is known.
    Others are made when they are asked for."""

    def __init__(self, runs: Iterable[Run], rotations: Rotations | None = None, states: I64 | None = None) -> None:
        self.runs = tuple(runs)
        self.rows = sum(run.rows for run in self.runs)
        self._rotations: Rotations = {} if rotations is None else rotations
        self._states = states

    def part(self, part: slice) -> Places:
        """Of some of the rows."""
        found, first = [], 0
        for run in self.runs:
            low, high = max(part.start, first), min(part.stop, first + run.rows)
            if low < high:
                found.append(Run(run.sequence, run.start + low - first, high - low))
            first += run.rows
        return Places(found)

    def cut(self, size: int) -> list[tuple[slice, Places]]:
        """In pieces of so many rows."""
        if self.rows <= size:
            return [(slice(0, self.rows), self)]
        return [(part, self.part(part)) for part in chunks(self.rows, size)]

    def spans(self, layer: int) -> list[Span]:
        """As kernels take them, of one layer."""
        return [Span(run.sequence.pages(layer), run.start, run.rows) for run in self.runs]

    def states(self, layer: int) -> StateRows:
        """As kernels take them, of one layer."""
        if self._states is None:
            self._states = np.concatenate([run.sequence.states.rows(run.start, run.rows) for run in self.runs])
        return StateRows(self._states, self.runs[0].sequence.states.layout(layer))

    def rotation(self, table: RopeTable) -> tuple[F32, F32]:
        """Cosines and sines (rows, rope_dim / 2)."""
        found = self._rotations.get(table)
        if found is None:
            each = [table.at(run.start, run.rows) for run in self.runs]
            found = each[0]
            if len(each) > 1:
                found = np.concatenate([cos for cos, _ in each]), np.concatenate([sin for _, sin in each])
            self._rotations[table] = found
        return found
