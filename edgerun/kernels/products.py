"""The body of a product: some rows of activations times some groups of weight rows, all columns, in registers.

A format says what a block is (`formats`), an instruction set how to multiply (`ops`); here stands, once for all of
them, the order in which a result is summed: block after block from zero on, each block one fused multiply-add (two,
where it has minima) of an exact integer sum. So a result's bits depend neither on how many rows or groups are done
together nor on the instruction set's way of multiplying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from edgerun.kernels.formats.activations import FORMS, Q8_COLS, Q8_SUMS_BYTES, SCALED_SUM, start_offset
from edgerun.kernels.formats.base import Flat, Format, Plain, Quantised, Super
from edgerun.kernels.isa import Isa
from edgerun.kernels.ops import emitter_of
from edgerun.kernels.ops.emitter import Chain, Emitter, Value
from edgerun.kernels.simd import I32, I64, function

# Of weights that are asked for before they are needed, by a single row of activations: into this level of caches
AHEAD_BYTES = {1: 4096, 2: 8192}


@dataclass(frozen=True)
class Place:
    """Where a block lies: packed weights of each group (i64 addresses), and of each row of activations its quants,
    scale and sums."""

    weights: list[Value]
    x: list[Value]
    scales: list[Value]
    sums: list[Value]


Sums = list[list[Value]]  # [group][row] L x f32


def tile(isa: Isa, format: Format, rows: int, groups: int) -> Any:
    """A Numba function (descriptor, item, end, row, done) -> None: the products of `groups` groups, items from `item`
    on, with `rows` rows of activations from `row` on (see `matmul_driver`). Items from `end` on are computed as the
    last before it and not stored, and so are the first `done` rows."""

    def emit(b: Any, descriptor: Any, item: Any, end: Any, row: Any, done: Any) -> None:
        # What lies in the order in which it is needed the processor foresees as well
        level = 2 if isa.second_level and format.bytes < format.cols else 1
        _Tile(emitter_of(isa, b, rows), format, rows, groups, level).emit(descriptor, item, end, row, done)

    return function((types.int64,) * 5, types.void, emit)


class _Tile:
    def __init__(self, e: Emitter, format: Format, rows: int, groups: int, level: int) -> None:
        self._e, self._b = e, e.b
        self._level = level  # of caches, into which weights are asked for
        self._format = format
        self._rows, self._groups = rows, groups

    def emit(self, descriptor: Value, item: Value, end: Value, row: Value, done: Value) -> None:
        e, b, format = self._e, self._b, self._format
        zero = ir.Constant(I64, 0)

        def slot(index: int) -> Value:
            return e.load(descriptor, 8 * index, I64)

        first, last = b.sub(item, slot(0)), b.sub(b.sub(end, slot(0)), ir.Constant(I64, 1))
        blocks, weight_rows = slot(4), slot(5)
        group_bytes = b.mul(blocks, ir.Constant(I64, format.bytes * e.lanes))
        numbers = [b.add(first, ir.Constant(I64, g)) for g in range(self._groups)]
        inside = [b.select(b.icmp_signed("<", n, last), n, last) for n in numbers]
        weights = [b.add(slot(1), b.mul(n, group_bytes)) for n in inside]

        def rows_of(base: int, stride: int) -> list[Value]:
            at, step = b.add(slot(base), b.mul(row, slot(stride))), slot(stride)
            return [b.add(at, b.mul(step, ir.Constant(I64, j))) for j in range(self._rows)]

        start = Place(weights, rows_of(8, 9), rows_of(10, 11), rows_of(12, 13))
        sums = self._columns(start, blocks)

        out = b.add(slot(2), b.mul(row, slot(6)))
        add = b.icmp_signed("!=", slot(7), zero)
        for g, number in enumerate(numbers):
            left = b.sub(weight_rows, b.mul(number, ir.Constant(I64, e.lanes)))
            valid = b.trunc(b.select(b.icmp_signed("<=", number, last), left, zero), I32)
            for j in range(self._rows):
                y = b.add(out, b.mul(slot(6), ir.Constant(I64, j)))
                y = b.add(y, b.mul(number, ir.Constant(I64, 4 * e.lanes)))
                wanted = b.icmp_signed(">=", ir.Constant(I64, j), done)
                self._put(y, sums[g][j], b.select(wanted, valid, ir.Constant(I32, 0)), add)

    def _put(self, y: Value, value: Value, valid: Value, add: Value) -> None:
        """Store, or add to what is there, the first lanes of a result."""
        e = self._e
        some = self._b.select(add, valid, ir.Constant(I32, 0))
        e.store_floats(y, e.fadd(value, e.load_some_floats(y, some)), valid)

    def _columns(self, start: Place, blocks: Value) -> Sums:
        """The loop over blocks."""
        e, b = self._e, self._b
        function_, before = b.function, b.block
        loop, after = function_.append_basic_block("columns"), function_.append_basic_block("stored")
        zero, zeros = ir.Constant(I64, 0), e.constant_float(0.0)
        b.cbranch(b.icmp_signed(">", blocks, zero), loop, after)
        b.position_at_end(loop)
        k = b.phi(I64)
        k.add_incoming(zero, before)
        sums = [[b.phi(e.floats) for _ in range(self._rows)] for _ in range(self._groups)]
        next_sums = self._block(self._place(start, k), sums)
        next_k = b.add(k, ir.Constant(I64, 1))
        end = b.block
        k.add_incoming(next_k, end)
        b.cbranch(b.icmp_signed("<", next_k, blocks), loop, after)
        b.position_at_end(after)
        results: Sums = []
        for phis, values in zip(sums, next_sums, strict=True):
            results.append([])
            for phi, value in zip(phis, values, strict=True):
                phi.add_incoming(zeros, before)
                phi.add_incoming(value, end)
                result = b.phi(e.floats)
                result.add_incoming(zeros, before)
                result.add_incoming(value, end)
                results[-1].append(result)
        return results

    def _place(self, start: Place, k: Value) -> Place:
        b, format = self._b, self._format
        cols, sums_bytes = FORMS.get(format.form, (1, 0))
        each = format.cols // cols  # blocks of activations in one of weights

        def moved(addresses: list[Value], step: int) -> list[Value]:
            if not step:
                return addresses
            by = b.mul(k, ir.Constant(I64, step))
            return [b.add(address, by) for address in addresses]

        return Place(
            moved(start.weights, format.bytes * self._e.lanes),
            moved(start.x, format.cols if isinstance(format, Quantised) else 4),
            moved(start.scales, 4 * each if isinstance(format, Quantised) else 0),
            moved(start.sums, sums_bytes * each),
        )

    def _block(self, place: Place, sums: Sums) -> Sums:
        e, format = self._e, self._format
        if isinstance(format, Flat):
            return self._flat(format, place, sums)
        if isinstance(format, Super):
            return self._super(format, place, sums)
        assert isinstance(format, Plain)
        self._ask_ahead(place, 0, 1)
        weights = [format.weight(e, q) for q in place.weights]
        spread = [e.spread_float(x, 0) for x in place.x]
        return [
            [e.fma(w, x, acc) for x, acc in zip(spread, row, strict=True)] for w, row in zip(weights, sums, strict=True)
        ]

    def _ask_ahead(self, place: Place, part: int, parts: int) -> None:
        """Of what a single row needs later, one of `parts` shares at a time: all at once would fill the queue of reads
        and then leave it to run dry. (The loads of many rows hide the weights' latency.)"""
        lines = -(-self._format.bytes * self._e.lanes // 64)
        for q in place.weights:
            for line in range(part * lines // parts, (part + 1) * lines // parts):
                self._e.prefetch(q, AHEAD_BYTES[self._level] + 64 * line, self._level)
        if parts > 1:
            self._e.barrier()  # LLVM would gather them again

    def _flat(self, format: Flat, place: Place, sums: Sums) -> Sums:
        e = self._e
        sums = [list(row) for row in sums]
        for part in range(format.parts):
            self._ask_ahead(place, part, format.parts)
            block = part * format.part_cols // Q8_COLS
            starts = self._starts(format, place, Q8_SUMS_BYTES * block, part - block * Q8_COLS // format.part_cols)
            chains = [
                [e.chain(format.top, start, None, None, format.signed_top) for start in starts] for _ in place.weights
            ]
            self._multiply(format, place, part, chains)
            for g, q in enumerate(place.weights):
                scale, low = format.scale(e, q, part), format.low(e, q, part)
                for j in range(self._rows):
                    value = e.fmul(e.to_floats(chains[g][j].end()), e.spread_float(place.scales[j], 4 * block))
                    sums[g][j] = e.fma(value, scale, sums[g][j])
                    if low is not None:
                        scaled = e.spread_float(place.sums[j], Q8_SUMS_BYTES * block + SCALED_SUM)
                        sums[g][j] = e.fma(scaled, low, sums[g][j])
        return sums

    def _super(self, format: Super, place: Place, sums: Sums) -> Sums:
        e = self._e
        totals: list[list[Value | None]] = [[None] * self._rows for _ in range(self._groups)]
        for part in range(format.parts):
            if self._rows > 1:
                e.barrier()
            self._ask_ahead(place, part, format.parts)
            starts = self._starts(format, place, 0, part)
            chains: list[list[Chain]] = []
            for q, row in zip(place.weights, totals, strict=True):
                scale = format.scale(e, q, part)
                chains.append(
                    [
                        e.chain(format.top, start, scale, t, format.signed_top)
                        for start, t in zip(starts, row, strict=True)
                    ]
                )
            self._multiply(format, place, part, chains)
            totals = [[self._settled(chain.end()) for chain in row] for row in chains]
        done: Sums = []
        for g, q in enumerate(place.weights):
            d, minima = format.d(e, q), format.minima(e, q)
            done.append([])
            for j in range(self._rows):
                value = e.fmul(e.to_floats(totals[g][j]), d)
                if minima is not None:
                    low: Value | None = None
                    for pairs, offset in minima[1]:
                        low = e.dot_pairs(low, pairs, e.spread(place.sums[j], offset))
                    value = e.fsub(value, e.fmul(e.to_floats(low), minima[0]))
                done[-1].append(e.fma(value, e.spread_float(place.scales[j], 0), sums[g][j]))
        return done

    def _settled(self, total: Value) -> Value:
        return self._e.settled(total) if self._rows > 1 else total

    def _starts(self, format: Quantised, place: Place, sums_at: int, within: int) -> list[Value | None]:
        """What each row's chain of a part starts from; `within`: the part's number in its block of activations, whose
        sums are `sums_at` bytes on."""
        beyond = format.beyond or (128 if not format.top and self._e.signed_start else 0)
        if not beyond:
            return [None] * self._rows
        offset, shift = start_offset(format.form, beyond, format.part_cols, within)
        return [self._e.shl(self._e.spread(sums, sums_at + offset), shift) for sums in place.sums]

    def _multiply(self, format: Quantised, place: Place, part: int, chains: list[list[Chain]]) -> None:
        """Add the products of a part's codes with activations to [group][row] chains."""
        e = self._e
        for four in zip(*(format.codes(e, q, part) for q in place.weights), strict=True):
            for j, x in enumerate(place.x):
                spread = format.spread(e, x, four[0][0])
                for g, (_, codes) in enumerate(four):
                    chains[g][j].step(codes, spread)
