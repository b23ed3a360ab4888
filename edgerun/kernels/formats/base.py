"""What a weight format tells the kernels: how its blocks lie packed, and what a block's product is.

Packing moves bytes and adds none. Groups of L rows (L = lanes of the instruction set; the last group is filled up
with zero rows) lie together; in a group, block after block along the columns; in a block, its fields one after the
other; in a field, unit after unit, each L times side by side, one a row. So a register holds the same thing of L rows
and no sum ever crosses lanes: a field of 4-byte units is read as word vectors, one of 2-byte units as halves or
integers, one of bytes as scales. Where a word's bits stand so that four neighbouring columns cannot be had with a shift
and a mask, packing rearranges them (`TURNED_BITS`, `TURNED_PAIRS`).

A product is written once, over an `ops.emitter.Emitter`, as a list of *parts*: 16, 32 or more columns that share a
scale. A part says which codes (bytes) stand at which columns; `products` multiplies them, for one row of activations or
several. `Flat` formats have float scales and want activations in blocks of 32 ("q8"). `Super` formats have integer
scales below a float one: activations in blocks of 256 ("q8k"). `Plain` ones are floats ("f32").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgerun.formats.gguf.types import GgmlType

if TYPE_CHECKING:
    from edgerun.kernels.ops.emitter import Emitter, Value
else:
    Emitter = Value = Any

__all__ = [
    "TURNED_BITS",
    "TURNED_PAIRS",
    "Codes",
    "Emitter",
    "Field",
    "Flat",
    "Form",
    "Format",
    "Plain",
    "Quantised",
    "Super",
    "Swaps",
    "Value",
    "swap_masks",
]

Form = Literal["q8", "q8k", "f32"]
Codes = Iterable[tuple[int, Any]]  # (first column of four within the block, what `ops.emitter.Chain.step` takes)


Swaps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Field:
    """`count` units of `unit` bytes, from byte `source` of a GGUF block on. `swaps`: how the bits of each 32-bit unit
    are rearranged, as exchanges of two bits (the higher first) of a bit's number, one after the other."""

    source: int
    unit: int
    count: int
    swaps: Swaps = ()

    @property
    def bytes(self) -> int:
        """Of one row."""
        return self.unit * self.count


class Format:
    """A weight type for which there are kernels. `fields`: all bytes of a block, in the order in which they lie
    packed."""

    type: ClassVar[GgmlType]
    form: ClassVar[Form]
    fields: ClassVar[tuple[Field, ...]]

    @property
    def cols(self) -> int:
        """Of a block."""
        return self.type.block_size

    @property
    def bytes(self) -> int:
        """Of a block of one row: as in the file."""
        return self.type.block_bytes

    @property
    def name(self) -> str:
        """In the names of kernels."""
        return self.type.name.lower()

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Of every field in a packed block, bytes of one row."""
        starts = [0]
        for field in self.fields:
            starts.append(starts[-1] + field.bytes)
        if starts[-1] != self.bytes:
            raise AssertionError(f"the fields of {self.type.name} are {starts[-1]} bytes, not {self.bytes}")
        return tuple(starts[:-1])

    def offset(self, e: Emitter, field: int, unit: int = 0) -> int:
        """Of a unit's vector in a packed block, in bytes."""
        return e.lanes * (self.starts[field] + self.fields[field].unit * unit)

    def words(self, e: Emitter, q: Value, field: int, unit: int) -> Value:
        """The word vector of a field's unit."""
        return e.load_words(q, self.offset(e, field, unit))


class Plain(Format):
    """Floats: a block is a column."""

    form = "f32"
    # Where a processor multiplies tiles of bf16: of each plane, a bf16 of every weight, the parts of activations (see
    # `activations`) that it is multiplied with. None: such weights take too many products to be worth it.
    tile_products: ClassVar[tuple[tuple[int, ...], ...]] = ()

    def pieces(self, e: Emitter, q: Value) -> list[Value]:
        """L x f32 for each plane of a column."""
        return [self.weight(e, q)]

    def planes(self, e: Emitter, first: Value, second: Value) -> list[Value]:
        """Of the columns at two addresses: words, the first column's bf16 below the second's, for each plane."""
        raise NotImplementedError

    def weight(self, e: Emitter, q: Value) -> Value:
        """L x f32."""
        raise NotImplementedError


class Quantised(Format):
    """Codes times scales. A weight is scale * (code - `beyond`), or less where there are minima."""

    parts: ClassVar[int]  # of a block
    top: ClassVar[int]  # the largest code; 0: codes are signed, `Emitter.signed_codes` or `table_codes`
    signed_top: ClassVar[int] = 128  # the largest magnitude of signed codes
    beyond: ClassVar[int] = 0  # a power of two times the columns' sum of activations is taken off: see `activations`

    @property
    def part_cols(self) -> int:
        return self.cols // self.parts

    def codes(self, e: Emitter, q: Value, part: int) -> Codes:
        """Of a part of the packed block at q, each emitted when it is asked for."""
        raise NotImplementedError

    def spread(self, e: Emitter, x: Value, column: int) -> Value:
        """The activations that stand beside the codes of a column."""
        return e.spread_quants(x, column)

    def columns(self, e: Emitter, column: int) -> Sequence[int]:
        """Which columns the four codes of a vector are of that is called by `column`."""
        return range(column, column + 4)

    def nibble_codes(self, e: Emitter, q: Value, field: int, low: int, high: int) -> Iterator[tuple[int, Value]]:
        """(column, codes below 16) of a field of four words: its low nibbles from column `low` on, the high ones from
        `high` on."""
        for t in range(self.fields[field].count):
            word = self.words(e, q, field, t)
            yield low + 4 * t, e.mask(word, 15)
            yield high + 4 * t, e.field(word, 4, 15)


class Flat(Quantised):
    """Blocks of 32 columns, or of several parts of 32 or 16 with a float scale each."""

    form = "q8"

    def scale(self, e: Emitter, q: Value, part: int) -> Value:
        """L x f32."""
        raise NotImplementedError

    def low(self, e: Emitter, q: Value, part: int) -> Value | None:
        """L x f32 that is added to every weight of the part; None: nothing."""
        return None


class Super(Quantised):
    """Blocks of 256 columns."""

    form = "q8k"
    scales: ClassVar[tuple[int, int]] = (-128, 127)  # the least and the greatest of a part's scale

    def d(self, e: Emitter, q: Value) -> Value:
        """L x f32, the block's scale."""
        raise NotImplementedError

    def scale(self, e: Emitter, q: Value, part: int) -> Value | None:
        """L x i32, a part's scale; None: one."""
        return None

    def minima(self, e: Emitter, q: Value) -> tuple[Value, Sequence[tuple[Value, int]]] | None:
        """Their scale (L x f32), and vectors of pairs of i16 minima, each with the offset in the activations' sums of
        the pair of sums that it is multiplied with."""
        return None


# Bit 4 t + j of a word becomes bit t of byte j: columns 4 t .. 4 t + 3 have theirs at the same place of four bytes.
TURNED_BITS: Swaps = ((4, 1), (3, 0), (2, 1), (1, 0))
# Two bits at 8 j + 2 k change places with those at 8 k + 2 j.
TURNED_PAIRS: Swaps = ((4, 2), (3, 1))


def swap_masks(swaps: Swaps) -> list[tuple[int, int]]:
    """(shift, mask) of each exchange: moved = ((word >> shift) ^ word) & mask; word ^= moved ^ (moved << shift)."""
    found = []
    for high, low in swaps:
        places = [place for place in range(32) if place >> low & 1 and not place >> high & 1]
        found.append(((1 << high) - (1 << low), sum(1 << place for place in places)))
    return found
