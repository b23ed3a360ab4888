"""Where a sequence's keys and values lie: in pages of KEYS_PER_PAGE positions, found through a table of addresses.

A page belongs to a group of layers and holds the keys and values of all of them, one layer after another; every page
of a group is laid out alike. Kernels get the address of the table, a layer's places in a page, and which positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.kv_formats import KvFormat

I64 = NDArray[np.int64]
_LINE = 64  # bytes: keys and values begin on a cache line


@dataclass(frozen=True)
class LayerLayout:
    """One layer's place in a page: keys of all heads from `keys_at` bytes on, then the values of all heads."""

    kv_heads: int
    head_dim: int
    head_dim_v: int
    keys: KvFormat
    values: KvFormat
    keys_at: int

    @property
    def keys_stride(self) -> int:
        """Bytes from head to head in the keys."""
        return self.keys.keys_bytes(self.head_dim)

    @property
    def values_stride(self) -> int:
        """Bytes from head to head in the values."""
        return self.values.values_bytes(self.head_dim_v)

    @property
    def values_at(self) -> int:
        """Bytes from a page's beginning to the values."""
        return self.keys_at + _whole_lines(self.kv_heads * self.keys_stride)

    @property
    def end(self) -> int:
        """Bytes from a page's beginning to the next layer."""
        return self.values_at + _whole_lines(self.kv_heads * self.values_stride)


@dataclass(frozen=True, eq=False)
class LayerPages:
    """One layer's keys and values of one sequence. `table`: address of the page of positions KEYS_PER_PAGE * i and on,
    0 where none is held; whoever makes this keeps the pages and the table where they are."""

    table: I64
    layout: LayerLayout

    @cached_property
    def address(self) -> int:
        """Of the table."""
        return int(self.table.ctypes.data)


@dataclass(frozen=True, eq=False)
class Span:
    """Consecutive rows of one sequence: `rows` of them, the first at position `start`."""

    pages: LayerPages
    start: int
    rows: int

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.start + self.rows


def layout_of(spans: Sequence[Span]) -> LayerLayout:
    """The one layout of all spans. UsageError when there are several, or none."""
    layout = spans[0].pages.layout if spans else None
    if layout is None or any(span.pages.layout is not layout and span.pages.layout != layout for span in spans):
        raise UsageError("spans must be of one layer")
    return layout


def check_spans(spans: Sequence[Span], rows: int, first: Sequence[int]) -> None:
    """UsageError unless the spans have so many rows together and their pages are held, from position first[i] on to
    the end of span i: kernels trust what the tables say."""
    if sum(span.rows for span in spans) != rows:
        raise UsageError(f"spans of {[span.rows for span in spans]} rows do not cover {rows}")
    for span, begin in zip(spans, first, strict=True):
        table, low, high = span.pages.table, begin // KEYS_PER_PAGE, -(-span.end // KEYS_PER_PAGE)
        if span.rows < 1 or begin < 0 or high > len(table) or not table[low:high].all():
            raise UsageError(f"rows {span.start} to {span.end - 1} lie outside the pages that are held")


def _whole_lines(n_bytes: int) -> int:
    return -(-n_bytes // _LINE) * _LINE
