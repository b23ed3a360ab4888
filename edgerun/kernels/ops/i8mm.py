"""ARM's `smmla` (Neoverse V1 and later, Cortex-X2 and A710, Apple M2): a register of two rows of weights times one of
two rows of activations, eight columns each; the four sums of products are added to one register. Twice the products of
`sdot` in an instruction, for prompts; a single row of activations goes by `sdot`.

Words of weights hold four columns of a row. Two of them, of neighbouring columns, are interleaved to rows of eight:
once for all rows of activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from edgerun.kernels import simd
from edgerun.kernels.ops.emitter import Chain, SumChain, Value
from edgerun.kernels.ops.neon import DotProduct
from edgerun.kernels.simd import I8, I32, I64

_BYTES, _WORDS, _HALVES = ir.VectorType(I8, 16), ir.VectorType(I32, 4), ir.VectorType(I64, 2)  # a register


@dataclass(frozen=True)
class Quants:
    """Four activations of a row that are loaded with their neighbours later."""

    address: Value
    column: int


class MatrixProduct(DotProduct):
    """For several rows of activations, which come in pairs: chains are paired in the order in which they are begun."""

    def __init__(self, builder: Any, lanes: int, several: bool = False) -> None:
        super().__init__(builder, lanes, several)
        self._begun: _Pair | None = None

    def spread_quants(self, address: Value, column: int) -> Any:
        return Quants(address, column) if self.several else super().spread_quants(address, column)

    def chain(
        self, top: int, start: Value | None, scale: Value | None, total: Value | None, signed_top: int = 128
    ) -> Chain:
        if not self.several:
            return super().chain(top, start, scale, total, signed_top)
        pair, place = (_Pair(self), 0) if self._begun is None else (self._begun, 1)
        self._begun = None if place else pair
        return MatrixChain(self, pair, place, start, scale, total)

    def rows_of_eight(self, low: Value, high: Value) -> list[Value]:
        """Codes of four columns and of the next four -> registers of two rows of eight."""

        def make() -> tuple[list[Value], Value, Value]:
            made = []
            for one, other in zip(self.quarters(low, _WORDS), self.quarters(high, _WORDS), strict=True):
                for places in ([0, 4, 1, 5], [2, 6, 3, 7]):
                    made.append(self.b.bitcast(simd.shuffle(self.b, one, other, places), _BYTES))
            return made, low, high  # the key holds for as long as they live

        return self.once(("rows of eight", id(low), id(high)), make)[0]

    def two_of_eight(self, first: Value, second: Value, column: int) -> Value:
        """Eight activations of each of two rows; of sixteen two loads are made."""
        half, at = column % 16 // 8, column // 16 * 16
        one, other = self.load(first, at, _HALVES), self.load(second, at, _HALVES)
        return self.b.bitcast(simd.shuffle(self.b, one, other, [half, 2 + half]), _BYTES)


class MatrixChain(SumChain):
    """The sum of one of two rows of activations."""

    def __init__(
        self,
        emitter: MatrixProduct,
        pair: _Pair,
        place: int,
        start: Value | None,
        scale: Value | None,
        total: Value | None,
    ) -> None:
        super().__init__(emitter, start, scale, total)
        self._pair, self._place = pair, place

    def step(self, codes: Any, x: Any) -> None:
        self._pair.step(self._place, codes, x)

    def end(self) -> Value:
        self._sum = self._e.add(self._sum, self._pair.sum_of(self._place))
        return super().end()


class _Pair:
    """The sums of two rows of activations, mixed, in registers of two rows of weights."""

    def __init__(self, emitter: MatrixProduct) -> None:
        self._e = emitter
        self._sums = [ir.Constant(_WORDS, [0] * 4)] * (emitter.lanes // 2)
        self._waiting: tuple[dict[int, tuple[Value, Value]], ...] = ({}, {})  # by column: codes, the row's address

    def step(self, place: int, codes: Value, x: Quants) -> None:
        """What stands beside eight columns in both rows is multiplied as soon as all of it is there."""
        self._waiting[place][x.column] = codes, x.address
        low, high = x.column & ~4, x.column | 4
        if not all(low in row and high in row for row in self._waiting):
            return
        (codes_low, first), (codes_high, _) = self._waiting[0].pop(low), self._waiting[0].pop(high)
        (_, second), _ = self._waiting[1].pop(low), self._waiting[1].pop(high)
        e, activations = self._e, self._e.two_of_eight(first, second, low)
        weights = e.rows_of_eight(codes_low, codes_high)
        self._sums = [
            e.call("smmla.v4i32.v16i8", _WORDS, total, each, activations)
            for total, each in zip(self._sums, weights, strict=True)
        ]

    def sum_of(self, place: int) -> Value:
        """A word vector."""
        if any(self._waiting):
            raise AssertionError(f"columns {sorted(self._waiting[0])} have no neighbours")
        pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
        places = [place, 2 + place, 4 + place, 6 + place]
        return self._e.joined([simd.shuffle(self._e.b, low, high, places) for low, high in pairs])
