"""Buffers that live as long as the decoder: made once for each number of rows that is in use."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from edgerun.kernels.interface import F32

Role = Literal["mixer", "recurrence", "feed_forward", "choices", "sums", "streams"]
Take = Callable[[int], F32]
"""Columns -> a buffer (rows, cols) f32."""

Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")

_LINE = 16  # f32 of a cache line


class Layout(Hashable, Protocol[Made_co]):
    """What buffers a block wants; equal layouts share them."""

    @property
    def role(self) -> Role:
        """Of one role only one layout is in use at a time: all lie in the same memory."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each buffer that `make` takes from many rows."""
        ...

    def make(self, rows: int, take: Take) -> Made_co:
        """The buffers for so many rows."""
        ...


class Scratch:
    """Buffers for T rows. h, t (T, d): a normed input and a result, for whoever computes; others by their layout, of
    which `layouts` are all that will be asked for."""

    def __init__(self, d_model: int, rows: int, layouts: frozenset[Layout[Any]]) -> None:
        self.rows = rows
        self.h, self.t = (np.empty((rows, d_model), np.float32) for _ in range(2))
        self._layouts = layouts
        self._memory: dict[Role, F32] = {}
        self._made: dict[Layout[Any], Any] = {}
        self._d_model = d_model
        self._parts: dict[int, F32] = {}

    def of(self, layout: Layout[Made]) -> Made:
        """The buffers of a layout."""
        found: Made | None = self._made.get(layout)
        if found is None:
            found = layout.make(self.rows, self._taker(layout.role))
            self._made[layout] = found
        return found

    def parts(self, units: int) -> F32:
        """(T, units, d), for results of units of columns."""
        found = self._parts.get(units)
        if found is None:
            found = self._parts[units] = np.empty((self.rows, units, self._d_model), np.float32)
        return found

    def _taker(self, role: Role) -> Take:
        if role not in self._memory:
            widest = max(sum(map(self._floats, each.widths)) for each in self._layouts if each.role == role)
            self._memory[role] = np.empty(widest, np.float32)
        memory, low = self._memory[role], 0

        def take(cols: int) -> F32:
            nonlocal low
            out = memory[low : low + self.rows * cols].reshape(self.rows, cols)
            low += self._floats(cols)
            return out

        return take

    def _floats(self, cols: int) -> int:
        """Of a buffer, in whole cache lines."""
        return -(-self.rows * cols // _LINE) * _LINE
