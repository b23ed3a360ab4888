"""Recorded attention of single rows, told anew with every step where its rows stand.

What depends on a row's sequence and position is listed in three launches of each layer: where its keys and values are
written, which pages it sees, and how these are joined. All of it is a few numbers that go to many places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.kernels.abi import Arguments, WrittenSpan, slot_of, slots
from edgerun.kernels.attention_abi import AttentionDecode, AttentionRow, MergedRow
from edgerun.kernels.attention_layout import decode_pages, seen_apart
from edgerun.kernels.kv_formats import decode_kernel
from edgerun.kernels.pages import LayerLayout
from edgerun.kernels.program import I64, Patch, Program
from edgerun.kernels.recording import Recording


@dataclass(frozen=True)
class RecordedLayer:
    """Attention of one layer. group: which of a row's tables of pages it reads; writes: whether it adds to them; first:
    so many positions are seen apart (`far.Far`)."""

    layout: LayerLayout
    heads: int
    window: int
    group: int
    chunked: bool = False
    writes: bool = True
    first: int = 0


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
        launches = _Launches(program, layers, rows)
        kinds = np.array([numbers[_kind(layer)] for layer in layers], np.int64)
        group_of = np.array([layer.group for layer in layers], np.int64)
        self._step = launches.step_patch(kinds, len(self._kinds))
        self._seldom = launches.seldom_patch(kinds, len(self._kinds), group_of, groups)
        self._placed: list[int] | None = None  # the numbers that change seldom, as they are written

    def place(self, positions: Sequence[int], tables: Sequence[Sequence[int]], idle: int = 0) -> None:
        """The rows stand at `positions`; tables[g][r]: address of row r's table of group g. The last `idle` rows are
        nobody's: they write nothing and see no more than their own position."""
        busy = self._rows - idle
        step = [*positions, *(position + 1 for position in positions)]
        seen: list[_Seen] = []
        for kind in self._kinds:
            pages = _Seen(kind, positions, busy)
            step += [*pages.firsts, *pages.far_ends]
            self._recording.decode_attention_scratch(kind.layout, kind.heads, pages.total)  # grows, before it is used
            seen.append(pages)
        seldom = [*[1] * busy, *[0] * idle]
        for table in tables:
            seldom += table
        for kind, pages in zip(self._kinds, seen, strict=True):
            scratch, parts = self._recording.decode_attention_scratch(kind.layout, kind.heads, pages.total)
            dim, kv_heads = kind.layout.head_dim_v, kind.layout.kv_heads
            near = [before + far for before, far in zip(pages.before, pages.far_pages, strict=True)]
            seldom += [kv_heads * count for count in near]
            seldom += [
                parts + 4 * (dim + 2) * (kind.heads * before + far)
                for before, far in zip(pages.before, pages.far_pages, strict=True)
            ]
            seldom += pages.pages
            seldom += [kv_heads * before for before in pages.before]
            seldom += [parts + 4 * (dim + 2) * kind.heads * before for before in pages.before]
            seldom += [kv_heads * pages.total, scratch]
        if seldom != self._placed:
            self._placed = None  # an interrupt may leave half of it
            self._seldom.write(*seldom)
            self._placed = seldom
        self._step.write(*step)


class _Seen:
    """What rows see in layers of a kind: the first position, and the end of those that are seen apart; pages of each
    row, of these those that are seen apart, pages of the rows before; pages of all."""

    def __init__(self, kind: RecordedLayer, positions: Sequence[int], busy: int) -> None:
        self.firsts: list[int] = []
        self.far_ends: list[int] = []
        self.pages: list[int] = []
        self.far_pages: list[int] = []
        self.before: list[int] = []
        self.total = 0
        for row, position in enumerate(positions):
            first, far_end = position, 0
            if row < busy:
                first, far_end = seen_apart(position + 1, kind.first, kind.window, kind.chunked)
            far = decode_pages(0, far_end) if far_end else 0
            pages = far + decode_pages(first, position + 1)
            self.firsts.append(first)
            self.far_ends.append(far_end)
            self.pages.append(pages)
            self.far_pages.append(far)
            self.before.append(self.total)
            self.total += pages


class _Launches:
    """The launches of each layer, and where the numbers go that `RecordedRows.place` gives, row after row. Where layers
    see some positions apart, two views are listed for a row, that of these positions first."""

    def __init__(self, program: Program, layers: Sequence[RecordedLayer], rows: int) -> None:
        self._program = program
        self._rows = rows
        self._write, self._merge = program.find("kv_write"), program.find("attention_merge")
        kernels = {decode_kernel(layer.layout.keys, layer.layout.values) for layer in layers}
        self._attend = np.sort(np.concatenate([program.find(name) for name in kernels]))
        self._writers = np.array([index for index, layer in enumerate(layers) if layer.writes], np.int64)
        self._once = np.array([index for index, layer in enumerate(layers) if not layer.first], np.int64)
        self._twice = np.array([index for index, layer in enumerate(layers) if layer.first], np.int64)

    def step_patch(self, kinds: I64, n_kinds: int) -> Patch:
        """Positions, ends; of each kind first positions, ends of what is seen apart."""
        rows, none = self._rows, np.zeros_like(kinds)
        first = rows * (2 + 2 * kinds)
        places = self._listed(self._write, WrittenSpan, {"start": none[self._writers]})
        places += self._views({"end": none + rows, "first": first}, {"end": first + rows})
        return self._program.patch(places, rows * (2 + 2 * n_kinds))

    def seldom_patch(self, kinds: I64, n_kinds: int, group_of: I64, groups: int) -> Patch:
        """Whether rows are written, their tables of each group; of each kind first items, parts, pages, first items and
        parts of what is seen apart, then items and scratch."""
        rows, none = self._rows, np.zeros_like(kinds)
        per_kind = 5 * rows + 2
        table, kind = rows * (1 + group_of), rows * (1 + groups) + kinds * per_kind
        pages = {"table": table, "pages": kind + 2 * rows}
        near = {**pages, "first_item": kind, "parts": kind + rows}
        far = {**pages, "first_item": kind + 3 * rows, "parts": kind + 4 * rows}
        first_parts = kind + rows
        first_parts[self._twice] = kind[self._twice] + 4 * rows
        merged = {"parts": first_parts, "pages": kind + 2 * rows}
        written = {"rows": none[self._writers], "table": table[self._writers]}
        places = [
            (self._program.item_places(self._attend), kind + 5 * rows),
            (self._program.argument_places(self._attend, slot_of(AttentionDecode, "scratch")), kind + 5 * rows + 1),
            *self._listed(self._write, WrittenSpan, written),
            *self._views(near, far),
            *self._listed(self._merge, MergedRow, merged),
        ]
        return self._program.patch(places, rows * (1 + groups) + n_kinds * per_kind)

    def _views(self, near: dict[str, I64], far: dict[str, I64]) -> list[tuple[I64, I64]]:
        """`_listed` of attention: of what rows see, and of what they see apart."""
        found = []
        for layers, views, number, sources in (
            (self._once, 1, 0, near),
            (self._twice, 2, 1, near),
            (self._twice, 2, 0, far),
        ):
            if len(layers):
                mine = {name: source[layers] for name, source in sources.items()}
                found += self._listed(self._attend[layers], AttentionRow, mine, views, number)
        return found

    def _listed(
        self, launches: I64, record: type[Arguments], sources: dict[str, I64], of_row: int = 1, number: int = 0
    ) -> list[tuple[I64, I64]]:
        """Of every row's record, the one of this number `of_row` ones: slots by name, and the number of row 0 that goes
        to each layer's."""
        size = len(slots(record))
        return [
            (
                self._program.listed_places(launches, (row * of_row + number) * size + slot_of(record, name)),
                source + row,
            )
            for row in range(self._rows)
            for name, source in sources.items()
        ]


def _kind(layer: RecordedLayer) -> tuple[int, ...]:
    layout = layer.layout
    formats = layout.keys.number, layout.values.number
    return (
        layout.kv_heads,
        layout.head_dim,
        layout.head_dim_v,
        *formats,
        layer.heads,
        layer.window,
        layer.chunked,
        layer.first,
    )
