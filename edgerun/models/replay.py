"""Decoding as recorded launches: Python's share of a step becomes one numpy assignment.

The first step of so many rows is recorded while it is computed. Later ones say where the rows stand now (their pages,
positions and rotations) and run the recording in one call. Where experts must be chosen the recording is cut into
pieces; what cannot be recorded is computed eagerly for good. A step of fewer rows than a recording has is filled up
with rows that are nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.kernels.program import Program
from edgerun.kernels.recorded_rows import RecordedLayer, RecordedRows
from edgerun.kernels.recording import NOT_ALL, Recording
from edgerun.kernels.states import I64
from edgerun.kv import KvSequence
from edgerun.models.blocks.base import Cancel, Decide, Recorded, at_once
from edgerun.models.layers import Layers
from edgerun.models.places import Places, Rotations, Run
from edgerun.models.ranks import RecordedSum

Row = tuple[KvSequence, int]  # a sequence and a position of it


@dataclass(frozen=True, eq=False)
class _Stop:
    """Where Python decides: after `at` launches, and the program goes on with launch `after`. instead: the launches in
    between do the same, unless the last before them stops the program (of a sum over ranks there is one, which says
    whether it did); None: it always stops."""

    at: int
    after: int
    decide: Decide
    instead: Recorded | RecordedSum | None


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A whole step. It is there only once all of it is, so that no error and no interrupt can leave half of one.

    body: launches before those of the logits.
    first_layers: of each group of layers, whose pages are found through one table."""

    program: Program
    stops: tuple[_Stop, ...]
    body: int
    attention: RecordedRows | None
    first_layers: tuple[int, ...]


class DecodeReplay:
    """One decoder's steps of `len(x)` rows. `run` expects what enters the first layer in x (rows, d); `logits` makes
    the logits of x."""

    def __init__(
        self, recording: Recording, layers: Layers, x: F32, logits: Callable[[], None], inputs: F32 | None = None
    ) -> None:
        self._recording = recording
        self._layers = layers
        self._x = x
        self._inputs = inputs  # (layers, rows, width), as `x` filled by the caller
        self._logits = logits
        self._recorded: _Recorded | None = None
        self._eager = False
        self._rotations: Rotations = {}
        for rotation, table in layers.tools.ropes.items():
            cos, sin = np.empty((2, len(x), rotation.dim // 2), np.float32)
            self._rotations[table] = cos, sin
        has_states = any(plan.mixer.state is not None for plan in layers.plan)
        self._states = np.zeros((len(x), 2), np.int64) if has_states else None  # what launches read is changed in place

    def run(self, rows: Sequence[Row], cancelled: Cancel, logits: bool) -> None:
        """Compute up to len(x) rows; x becomes their final states, logits, where wanted, those of x. Raises
        Cancelled."""
        somebody = len(rows)
        if self._eager:
            fed = None if self._inputs is None else self._inputs[:, :somebody]
            self._layers.record(self._x[:somebody], _places(rows), at_once(cancelled, somebody), inputs=fed)
            if logits:
                self._logits()
            return
        idle = len(self._x) - somebody
        rows = [*rows, *[rows[-1]] * idle]
        self._fill_up(somebody)
        positions = [position for _, position in rows]
        for table, (cos, sin) in self._rotations.items():
            table.gather(positions, cos, sin)
        if self._states is not None:
            self._states[:somebody] = [sequence.states.row(position) for sequence, position in rows[:somebody]]
            self._states[somebody:] = 0
        if self._recorded is None:
            self._record(rows, somebody, cancelled)
        else:
            recorded = self._recorded
            if recorded.attention is not None:
                tables = [[sequence.pages(layer).address for sequence, _ in rows] for layer in recorded.first_layers]
                recorded.attention.place(positions, tables, idle)
            self._run(recorded, cancelled, somebody, recorded.program.count if logits else recorded.body)

    def _run(self, recorded: _Recorded, cancelled: Cancel, somebody: int, end: int) -> None:
        """All launches before `end`, and what Python decides between them."""
        found, at, passed = self._layers.tools.found, 0, list[int]()
        ends = [stop.at for stop in recorded.stops if stop.instead is None]
        for stop in recorded.stops:
            if at < stop.at:
                ends = [each for each in ends if each >= stop.at]
                at = self._recording.run_program(recorded.program, at, ends[0] if ends else end)
            if stop.instead is not None and not isinstance(stop.instead, Recorded):
                if at == stop.at and stop.instead.is_left():
                    found.passed(passed)
                    passed.clear()
                    if not stop.instead.finish():
                        stop.decide(cancelled, somebody)
                continue
            if stop.instead is not None and at > stop.at:
                passed.append(stop.instead.layer)
                continue
            if stop.instead is not None and found.what(stop.instead.layer) != NOT_ALL:
                found.passed([*passed, stop.instead.layer])
                stop.instead.announce()
            else:
                found.passed(passed)
                stop.decide(cancelled, somebody)
                at = stop.after
            passed.clear()
        found.passed(passed)
        if at < end:
            self._recording.run_program(recorded.program, at, end)

    def _fill_up(self, somebody: int) -> None:
        """Nobody's rows are copies of the last: while a step is recorded they write what it writes."""
        self._x[somebody:] = self._x[somebody - 1]

    def _record(self, rows: Sequence[Row], somebody: int, cancelled: Cancel) -> None:
        stops: list[_Stop] = []
        with self._recording.record() as recorder:

            def cut(decide: Decide, instead: Recorded | RecordedSum | None = None) -> None:
                at = len(recorder)
                if instead is not None and instead.lay_out(self._recording):
                    stops.append(_Stop(at + 1, len(recorder), decide, instead))
                else:
                    stops.append(_Stop(at, at, decide, None))
                with recorder.paused():
                    decide(cancelled, somebody)
                    self._fill_up(somebody)

            def began(layer: int) -> None:
                recorder.section = f"layer {layer}"

            self._layers.record(self._x, _places(rows, self._rotations, self._states), cut, began, self._inputs)
            body = len(recorder)
            recorder.section = "logits"
            self._logits()
        if recorder.spoilt:
            self._eager = True
            return
        program, sequence = recorder.program(), rows[0][0]
        recorded = []
        first_layers: dict[int, int] = {}  # by the table that a group's layers share
        for layer, plan in enumerate(self._layers.plan):
            mixer = plan.attention
            if mixer is not None:
                source, kv = mixer.reads(layer), mixer.keys_and_values
                pages = sequence.pages(source)
                first_layers.setdefault(pages.address, source)
                group = list(first_layers).index(pages.address)
                writes = source == layer
                seen = kv.window, group, kv.chunked, writes, kv.kept_first
                recorded.append(RecordedLayer(pages.layout, mixer.heads, *seen))
        attention = RecordedRows(self._recording, program, recorded, len(rows)) if recorded else None
        self._recorded = _Recorded(program, tuple(stops), body, attention, tuple(first_layers.values()))


def _places(rows: Sequence[Row], rotations: Rotations | None = None, states: I64 | None = None) -> Places:
    """Each row a run of its own."""
    return Places((Run(sequence, position, 1) for sequence, position in rows), rotations, states)
