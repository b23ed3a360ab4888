"""Recorded attention of single rows, told anew with every step where its rows stand.

What depends on a row's sequence and position is listed in three launches of each layer: where its keys and values are
written, which pages it sees, and how these are joined. All of it is a few numbers that go to many places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.abi import Arguments, AttentionDecode, AttentionRow, MergedRow, WrittenSpan, slot_of, slots
from edgerun.kernels.attention_layout import decode_pages, first_seen
from edgerun.kernels.interface import Recording
from edgerun.kernels.kv_formats import decode_kernel
from edgerun.kernels.pages import LayerLayout
from edgerun.kernels.program import I64, Patch, Program


@dataclass(frozen=True)
class RecordedLayer:
    """Attention of one layer. group: which of a row's tables of pages it reads; writes: whether it adds to them."""

    layout: LayerLayout
    heads: int
    window: int
    group: int
    chunked: bool = False
    writes: bool = True


class RecordedRows:
    """The attention of `rows` rows in a program, of which `layers` have some, in order."""

    def __init__(self, recording: Recording, program: Program, layers: Sequence[RecordedLayer], rows: int) -> None:
        self._recording = recording
        self._rows = rows
        of_kind: dict[tuple[int, ...], RecordedLayer] = {}  # layers whose rows get the same numbers, one of each kind
        for layer in layers:
            of_kind.setdefault(_kind(layer), layer)
        self._kinds = list(of_kind.values())
        groups = 1 + max(layer.group for layer in layers)
        numbers = {kind: index for index, kind in enumerate(of_kind)}
        launches = _Launches(program, {decode_kernel(layer.layout.keys, layer.layout.values) for layer in layers}, rows)
        kinds = np.array([numbers[_kind(layer)] for layer in layers], np.int64)
        group_of = np.array([layer.group for layer in layers], np.int64)
        writers = np.array([index for index, layer in enumerate(layers) if layer.writes], np.int64)
        self._step = launches.step_patch(kinds, len(self._kinds), writers)
        self._seldom = launches.seldom_patch(kinds, len(self._kinds), group_of, groups, writers)
        self._placed: list[int] | None = None  # the numbers that change seldom, as they are written

    def place(self, positions: Sequence[int], tables: Sequence[Sequence[int]], idle: int = 0) -> None:
        """The rows stand at `positions`; tables[g][r]: address of row r's table of group g. The last `idle` rows are
        nobody's: they write nothing and see no more than their own position."""
        busy = self._rows - idle
        step = [*positions, *(position + 1 for position in positions)]
        seen: list[tuple[list[int], list[int], int]] = []  # of each kind: pages, pages before, all
        for kind in self._kinds:
            pages, before, total = [], [], 0
            for row, position in enumerate(positions):
                first = first_seen(position + 1, kind.window, kind.chunked) if row < busy else position
                step.append(first)
                count = decode_pages(first, position + 1)
                pages.append(count)
                before.append(total)
                total += count
            self._recording.decode_attention_scratch(kind.layout, kind.heads, total)  # grows, before it is relied on
            seen.append((pages, before, total))
        seldom = [*[1] * busy, *[0] * idle]
        for table in tables:
            seldom += table
        for kind, (pages, before, total) in zip(self._kinds, seen, strict=True):
            scratch, parts = self._recording.decode_attention_scratch(kind.layout, kind.heads, total)
            part_bytes = 4 * kind.heads * (kind.layout.head_dim_v + 2)
            seldom += [kind.layout.kv_heads * count for count in before]
            seldom += [parts + part_bytes * count for count in before]
            seldom += pages
            seldom += [kind.layout.kv_heads * total, scratch]
        if seldom != self._placed:
            self._placed = None  # an interrupt may leave half of it
            self._seldom.write(*seldom)
            self._placed = seldom
        self._step.write(*step)


class _Launches:
    """The launches of each layer, and where the numbers go that `RecordedRows.place` gives, row after row."""

    def __init__(self, program: Program, kernels: set[str], rows: int) -> None:
        self._program = program
        self._rows = rows
        self._write, self._merge = program.find("kv_write"), program.find("attention_merge")
        self._attend = np.sort(np.concatenate([program.find(name) for name in kernels]))

    def step_patch(self, kinds: I64, n_kinds: int, writers: I64) -> Patch:
        """Positions, ends; of each kind first positions. writers: the layers that write."""
        rows, none = self._rows, np.zeros_like(kinds)
        places = self._listed(self._write, WrittenSpan, {"start": none[writers]})
        places += self._listed(self._attend, AttentionRow, {"end": none + rows, "first": rows * (2 + kinds)})
        return self._program.patch(places, rows * (2 + n_kinds))

    def seldom_patch(self, kinds: I64, n_kinds: int, group_of: I64, groups: int, writers: I64) -> Patch:
        """Whether rows are written, their tables of each group; of each kind first items, parts, pages, then items and
        scratch."""
        rows, none = self._rows, np.zeros_like(kinds)
        per_kind = 3 * rows + 2
        table, kind = rows * (1 + group_of), rows * (1 + groups) + kinds * per_kind
        seen = {"first_item": kind, "parts": kind + rows, "pages": kind + 2 * rows}
        places = [
            (self._program.item_places(self._attend), kind + 3 * rows),
            (self._program.argument_places(self._attend, slot_of(AttentionDecode, "scratch")), kind + 3 * rows + 1),
            *self._listed(self._write, WrittenSpan, {"rows": none[writers], "table": table[writers]}),
            *self._listed(self._attend, AttentionRow, {"table": table, **seen}),
            *self._listed(self._merge, MergedRow, {"parts": seen["parts"], "pages": seen["pages"]}),
        ]
        return self._program.patch(places, rows * (1 + groups) + n_kinds * per_kind)

    def _listed(self, launches: I64, record: type[Arguments], sources: dict[str, I64]) -> list[tuple[I64, I64]]:
        """Of every row's record: slots by name, and the number of row 0 that goes to each layer's."""
        size = len(slots(record))
        return [
            (self._program.listed_places(launches, row * size + slot_of(record, name)), source + row)
            for row in range(self._rows)
            for name, source in sources.items()
        ]


def _kind(layer: RecordedLayer) -> tuple[int, ...]:
    layout = layer.layout
    formats = layout.keys.number, layout.values.number
    return layout.kv_heads, layout.head_dim, layout.head_dim_v, *formats, layer.heads, layer.window, layer.chunked
