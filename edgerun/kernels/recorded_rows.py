"""Recorded attention of single rows, told anew with every step where its rows stand.

What depends on a row's sequence and position is listed in three launches of each layer: where its keys and values are
written, which pages it sees, and how these are joined. All of it is a few numbers that go to many places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.abi import AttentionDecode, AttentionRow, MergedRow, WrittenSpan, slot_of
from edgerun.kernels.attention_launch import decode_kernel, first_seen
from edgerun.kernels.attention_layout import decode_pages
from edgerun.kernels.interface import Recording
from edgerun.kernels.pages import LayerLayout
from edgerun.kernels.program import I64, Program


@dataclass(frozen=True)
class RecordedLayer:
    """Attention of one layer. group: which of a row's tables of pages is its own."""

    layout: LayerLayout
    heads: int
    window: int
    group: int


class RecordedRows:
    """The attention of `rows` rows in a program, of which `layers` have some, in order."""

    def __init__(self, recording: Recording, program: Program, layers: Sequence[RecordedLayer], rows: int) -> None:
        self._recording = recording
        self._rows = rows
        of_kind: dict[tuple[int, ...], RecordedLayer] = {}  # layers whose rows get the same numbers, one of each kind
        for layer in layers:
            of_kind.setdefault(_kind(layer), layer)
        self._kinds = list(of_kind.values())
        self._groups = 1 + max(layer.group for layer in layers)
        numbers = {kind: index for index, kind in enumerate(of_kind)}
        kinds = np.array([numbers[_kind(layer)] for layer in layers], np.int64)
        groups = np.array([layer.group for layer in layers], np.int64)
        self._patch = program.patch(
            self._places(program, layers, kinds, groups), rows * (3 + self._groups) + len(self._kinds) * self._per_kind
        )

    @property
    def _per_kind(self) -> int:
        """Numbers: those of rows, then items and scratch."""
        return 4 * self._rows + 2

    def _places(
        self, program: Program, layers: Sequence[RecordedLayer], kinds: I64, groups: I64
    ) -> list[tuple[I64, I64]]:
        """Where the numbers go that `place` gives, which is: positions, ends, whether they are written, tables of each
        group, then of each kind first items, first positions, parts and pages of all rows, items, scratch."""
        rows = self._rows
        write, merge = program.find("kv_write"), program.find("attention_merge")
        names = {decode_kernel(layer.layout) for layer in layers}
        attend = np.sort(np.concatenate([program.find(name) for name in names]))
        none, table = np.zeros_like(groups), rows * (3 + groups)
        kind = rows * (3 + self._groups) + kinds * self._per_kind
        places = [
            (program.item_places(attend), kind + 4 * rows),
            (program.argument_places(attend, slot_of(AttentionDecode, "scratch")), kind + 4 * rows + 1),
        ]
        for row in range(rows):
            for launches, record, slots in (
                (write, WrittenSpan, {"start": none, "rows": none + 2 * rows, "table": table}),
                (
                    attend,
                    AttentionRow,
                    {
                        "end": none + rows,
                        "table": table,
                        "first_item": kind,
                        "first": kind + rows,
                        "parts": kind + 2 * rows,
                        "pages": kind + 3 * rows,
                    },
                ),
                (merge, MergedRow, {"parts": kind + 2 * rows, "pages": kind + 3 * rows}),
            ):
                before = row * len(record._fields)
                places += [
                    (program.listed_places(launches, before + slot_of(record, name)), source + row)
                    for name, source in slots.items()
                ]
        return places

    def place(self, positions: Sequence[int], tables: Sequence[Sequence[int]], idle: int = 0) -> None:
        """The rows stand at `positions`; tables[g][r]: address of row r's table of group g. The last `idle` rows are
        nobody's: they write nothing and see no more than their own position."""
        busy = self._rows - idle
        values = [*positions, *(position + 1 for position in positions), *[1] * busy, *[0] * idle]
        for table in tables:
            values += table
        seen: list[tuple[list[int], list[int], list[int]]] = []  # of each kind: first positions, pages, pages before
        for kind in self._kinds:
            firsts, pages, before, total = [], [], [], 0
            for row, position in enumerate(positions):
                first = first_seen(position + 1, kind.window) if row < busy else position
                count = decode_pages(first, position + 1)
                firsts.append(first)
                pages.append(count)
                before.append(total)
                total += count
            self._recording.decode_attention_scratch(kind.layout, kind.heads, total)  # grows, before it is relied on
            seen.append((firsts, pages, before))
        for kind, (firsts, pages, before) in zip(self._kinds, seen, strict=True):
            total, heads = before[-1] + pages[-1], kind.layout.kv_heads
            scratch, parts = self._recording.decode_attention_scratch(kind.layout, kind.heads, total)
            part_bytes = 4 * kind.heads * (kind.layout.head_dim_v + 2)
            values += [heads * count for count in before]
            values += firsts
            values += [parts + part_bytes * count for count in before]
            values += pages
            values += [heads * total, scratch]
        self._patch.write(*values)


def _kind(layer: RecordedLayer) -> tuple[int, ...]:
    layout = layer.layout
    formats = layout.keys.number, layout.values.number
    return layout.kv_heads, layout.head_dim, layout.head_dim_v, *formats, layer.heads, layer.window
