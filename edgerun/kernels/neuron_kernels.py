"""A ReLU feed-forward by its neurons: only rows of those that fired are touched (PowerInfer, PowerInfer-2).

Rows of the types here are used as GGUF blocks, as they are in the file: picking rows and interleaving them (as `layout`
does) would cost more than it brings. Up's rows are dotted with the (int8) activations, down's are added to the result,
which is why down must be stored transposed. Rows of all other types are interleaved: `neuron_launch` says how.

`neurons_up`, an item is a neuron: 0 gate, 1 h, 2 ff, 3 tokens, 4 ids (i32), 5 slots (i32), 6 memory, 7 bytes of a row
of memory, 8 blocks of 32 columns, 9 x or its quants, 10 their stride, 11 scales, 12 their stride, 13 relu squared.
`neurons_down`, an item is NEURON_SLICE columns of the result: 0 h, 1 ff, 2 tokens, 3 ids, 4 slots, 5 memory of the
first down row, 6 bytes of a row of memory, 7 neurons, 8 out, 9 columns.
`neurons_gate`, an item is a token: 0 gate, 1 h, 2 ff, 3 ids, 4 neurons, 5 x . up of them, 6 relu squared.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.layout import NEURON_SLICE
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f16, load_f32, load_i64, load_u32, store_f32


def _up(ops: Ops, product: Any) -> Any:
    def neurons_up(arguments: int, low: int, high: int) -> None:
        gate, h = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        ff, tokens = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        ids, slots = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        memory, size = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        blocks, x = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        dx, scales = load_i64(int64(arguments + 80)), load_i64(int64(arguments + 88))
        ds, squared = load_i64(int64(arguments + 96)), load_i64(int64(arguments + 104))
        for i in range(low, high):
            column = int64(load_u32(int64(ids + 4 * i)))
            row = memory + int64(load_u32(int64(slots + 4 * i))) * size
            for t in range(tokens):
                at = (t * ff + column) * 4
                g = load_f32(int64(gate + at))
                value = float32(0.0)
                if g > float32(0.0):
                    if squared != 0:
                        g = g * g
                    value = g * product(row, x + t * dx, scales + t * ds, blocks)
                store_f32(int64(h + at), value)

    return neurons_up, kernel_signature()


def build_neurons_gate(ops: Ops) -> Any:
    """What `_up` does with the products of neurons, made before."""

    def neurons_gate(arguments: int, low: int, high: int) -> None:
        gate, h = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        ff, ids = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        n, values = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        squared = load_i64(int64(arguments + 48))
        for t in range(low, high):
            for i in range(n):
                at = (t * ff + int64(load_u32(int64(ids + 4 * i)))) * 4
                g = load_f32(int64(gate + at))
                value = float32(0.0)
                if g > float32(0.0):
                    if squared != 0:
                        g = g * g
                    value = g * load_f32(int64(values + (t * n + i) * 4))
                store_f32(int64(h + at), value)

    return neurons_gate, kernel_signature()


def _up_quantised(ops: Ops, dot: Any, block_bytes: int) -> Any:
    zero, fma, to_floats, splat, sum_floats = ops.zero_floats, ops.fma, ops.to_floats, ops.splat, ops.sum_floats

    @njit(forceinline=True)
    def product(row: int, x: int, scales: int, blocks: int) -> Any:
        total = zero()
        for b in range(blocks):
            block = row + b * block_bytes
            scale = load_f16(int64(block)) * load_f32(int64(scales + 4 * b))
            total = fma(to_floats(dot(int64(block + 2), int64(x + 32 * b))), splat(scale), total)
        return sum_floats(total)

    return _up(ops, product)


def _up_floats(ops: Ops, load: Any, width: int) -> Any:
    zero, fma, load_x, sum_floats, lanes = ops.zero_floats, ops.fma, ops.load_floats, ops.sum_floats, ops.lanes

    @njit(forceinline=True)
    def product(row: int, x: int, scales: int, blocks: int) -> Any:
        total = zero()
        for i in range(0, 32 * blocks, lanes):
            total = fma(load(int64(row + width * i)), load_x(int64(x + 4 * i)), total)
        return sum_floats(total)

    return _up(ops, product)


def build_neurons_up_q4_0(ops: Ops) -> Any:
    """Exact integers up to a block's scale."""
    return _up_quantised(ops, ops.dot_nibbles, 18)


def build_neurons_up_q8_0(ops: Ops) -> Any:
    """Exact integers up to a block's scale."""
    return _up_quantised(ops, ops.dot_bytes, 34)


def build_neurons_up_f16(ops: Ops) -> Any:
    """Widened when loaded."""
    return _up_floats(ops, ops.load_halves, 2)


def build_neurons_up_bf16(ops: Ops) -> Any:
    """Widened when loaded."""
    return _up_floats(ops, ops.load_bfloats, 2)


def build_neurons_up_f32(ops: Ops) -> Any:
    """As they are."""
    return _up_floats(ops, ops.load_floats, 4)


def _down(ops: Ops, add_block: Any, block_bytes: int) -> Any:
    def neurons_down(arguments: int, low: int, high: int) -> None:
        h, ff = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        tokens, ids = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        slots, memory = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        size, n = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        out, cols = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        for item in range(low, high):
            first = item * NEURON_SLICE
            last = min(first + NEURON_SLICE, cols)
            for i in range(n):
                column = int64(load_u32(int64(ids + 4 * i)))
                row = memory + int64(load_u32(int64(slots + 4 * i))) * size
                for t in range(tokens):
                    value = load_f32(int64(h + (t * ff + column) * 4))
                    if value != float32(0.0):
                        for col in range(first, last, 32):
                            add_block(row + col // 32 * block_bytes, value, out + (t * cols + col) * 4)

    return neurons_down, kernel_signature()


def build_neurons_down_q4_0(ops: Ops) -> Any:
    """value * scale is rounded once, then each weight is one fused step."""
    lanes, load, store, fma, splat = ops.lanes, ops.load_floats, ops.store_floats, ops.fma, ops.splat
    low_nibbles, high_nibbles = ops.load_low_nibbles_as_floats, ops.load_high_nibbles_as_floats

    @njit(forceinline=True)
    def add_block(block: int, value: Any, out: int) -> None:
        factor = splat(value * load_f16(int64(block)))
        for j in range(0, 16, lanes):
            low, high = int64(out + 4 * j), int64(out + 64 + 4 * j)
            store(low, fma(low_nibbles(int64(block + 2 + j)), factor, load(low)))
            store(high, fma(high_nibbles(int64(block + 2 + j)), factor, load(high)))

    return _down(ops, add_block, 18)


def build_neurons_down_q8_0(ops: Ops) -> Any:
    """As Q4_0."""
    lanes, load, store, fma, splat = ops.lanes, ops.load_floats, ops.store_floats, ops.fma, ops.splat
    widen = ops.load_bytes_as_floats

    @njit(forceinline=True)
    def add_block(block: int, value: Any, out: int) -> None:
        factor = splat(value * load_f16(int64(block)))
        for j in range(0, 32, lanes):
            at = int64(out + 4 * j)
            store(at, fma(widen(int64(block + 2 + j)), factor, load(at)))

    return _down(ops, add_block, 34)


def _down_floats(ops: Ops, widen: Any, width: int) -> Any:
    lanes, load, store, fma, splat = ops.lanes, ops.load_floats, ops.store_floats, ops.fma, ops.splat

    @njit(forceinline=True)
    def add_block(block: int, value: Any, out: int) -> None:
        factor = splat(value)
        for j in range(0, 32, lanes):
            at = int64(out + 4 * j)
            store(at, fma(widen(int64(block + width * j)), factor, load(at)))

    return _down(ops, add_block, 32 * width)


def build_neurons_down_f16(ops: Ops) -> Any:
    """Widened when loaded."""
    return _down_floats(ops, ops.load_halves, 2)


def build_neurons_down_bf16(ops: Ops) -> Any:
    """Widened when loaded."""
    return _down_floats(ops, ops.load_bfloats, 2)


def build_neurons_down_f32(ops: Ops) -> Any:
    """As they are."""
    return _down_floats(ops, ops.load_floats, 4)
