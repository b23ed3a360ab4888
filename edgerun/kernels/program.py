"""Launches recorded once and replayed without Python in between: what a graph capture is on a GPU.

Decoding a token makes the same launches every time, on the same buffers, but for a few slots that depend on the
position: those are patched in the recorded arguments (`Program.set`, and `Patch` for what changes with every token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.abi import LIST_AT, PRODUCT_BYTES

I64 = NDArray[np.int64]


class Launch(NamedTuple):
    """All items of a kernel, at least `grain` at a time."""

    name: str
    kernel: int  # address
    arguments: bytes
    items: int
    grain: int


class Recorder:
    """Notes launches while they happen. `section`: what they are part of, for people."""

    def __init__(self) -> None:
        self.section = ""
        self._sections: list[str] = []
        self._launches: list[Launch] = []
        self._kept: list[Any] = []
        self._placed: list[Callable[[Program], None]] = []
        self.spoilt: str | None = None
        self._paused = False

    def __len__(self) -> int:
        return len(self._launches)

    def add(self, launch: Launch) -> None:
        """One launch."""
        if not self._paused:
            self._launches.append(launch)
            self._sections.append(self.section)

    def keep(self, memory: Any) -> None:
        """Memory that the recorded arguments point to."""
        self._kept.append(memory)

    def placed(self, tell: Callable[[Program], None]) -> None:
        """To be told of the program: where its launches lie is not known before."""
        self._placed.append(tell)

    def spoil(self, reason: str) -> None:
        """Something was done that is no launch: the recording cannot be replayed."""
        if not self._paused:
            self.spoilt = reason

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within is done, but not noted."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def program(self) -> Program:
        """What was noted, ready to run."""
        made = Program(self._launches, self._kept, self._sections)
        for tell in self._placed:
            tell(made)
        return made


class Program:
    """Launches in a row; `kept` is memory that their arguments point to.

    rows: (count, 4) int64: kernel, arguments, items, grain.
    """

    def __init__(self, launches: Sequence[Launch], kept: Sequence[Any], sections: Sequence[str] = ()) -> None:
        self._sections = list(sections)
        self._kept = list(kept)
        self._names = [each.name for each in launches]
        sizes = [-(-len(each.arguments) // 64) * 8 for each in launches]  # in slots, whole cache lines
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.count = len(launches)
        size = int(self._starts[-1])
        self._memory: I64 = np.zeros(size + 4 * self.count, np.int64)
        self._arguments, self.rows = self._memory[:size], self._memory[size:].reshape(self.count, 4)
        base = self._memory.ctypes.data
        for index, (_, kernel, arguments, items, grain) in enumerate(launches):
            start = int(self._starts[index])
            self._arguments[start : start + len(arguments) // 8] = np.frombuffer(arguments, np.int64)
            self.rows[index] = kernel, base + 8 * start, items, grain
        self.rows_address = int(self.rows.ctypes.data)

    def find(self, name: str) -> I64:
        """Which launches are of the kernel `name`."""
        return np.array([i for i, each in enumerate(self._names) if each == name], np.int64)

    def section_at(self, arguments: int) -> str | None:
        """What the launch with its arguments at this address is part of; None for the arguments of no launch here."""
        slot = (arguments - self._memory.ctypes.data) // 8
        if not 0 <= slot < len(self._arguments):
            return None
        launch = int(np.searchsorted(self._starts, slot, "right")) - 1
        return self._sections[launch] if self._sections else ""

    def products(self, launch: int, count: int) -> I64:
        """The `abi.Product`s of a launch of `count` products, (count, slots) int64, to be changed."""
        start, slots = int(self._starts[launch]) + LIST_AT // 8, PRODUCT_BYTES // 8
        return self._arguments[start : start + slots * count].reshape(count, slots)

    def arguments(self, launch: int, count: int) -> I64:
        """The first `count` slots of a launch's arguments, to be changed."""
        start = int(self._starts[launch])
        return self._arguments[start : start + count]

    def listed_places(self, launches: I64, slot: int) -> I64:
        """Slot `slot` of what is listed in each of these launches (`abi.LISTED`), all that is listed in a row."""
        return self.argument_places(launches, LIST_AT // 8 + slot)

    def argument_places(self, launches: I64, slot: int) -> I64:
        """Of argument `slot` of these launches, for a `Patch`."""
        places: I64 = self._starts[launches] + slot
        return places

    def item_places(self, launches: I64) -> I64:
        """Of these launches' numbers of items, for a `Patch`."""
        places: I64 = self._starts[-1] + 4 * launches + 2
        return places

    def patch(self, places: list[tuple[I64, I64]], values: int) -> Patch:
        """Of (places, which of the `values` numbers goes to each)."""
        where, what = (np.concatenate(each) for each in zip(*places, strict=True))
        return Patch(self._memory, where, what, np.zeros(values, np.int64))


@dataclass(frozen=True, eq=False)
class Patch:
    """What changes with every token, in one assignment: a few numbers, each of which goes to many places. (One for each
    argument took 80 us of a token: after a model's weights went through the caches, all that Python does is slow.)"""

    memory: I64
    places: I64
    sources: I64  # of each place: which of the values
    values: I64

    def write(self, *values: int) -> None:
        """Give all values anew."""
        self.values[:] = values
        self.memory[self.places] = self.values[self.sources]
