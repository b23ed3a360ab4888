"""New keys and values into pages, and blocks of them out again as f32: all that kernels know of `kv_formats`."""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit, uint8

from edgerun.kernels.abi import LIST_AT
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kernels.kv_formats import F16, GROUP, IN_KEYS, Q4_0, Q8_0
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f16, load_f32, load_i64, load_u8, store_f16, store_f32, store_u8

_SPAN_BYTES = 32  # of an `abi.WrittenSpan`
_PLAIN, _BYTES, _NIBBLES = F16.number, Q8_0.number, Q4_0.number
_IN_KEYS = IN_KEYS.number
_HALF = GROUP // 2
_SCALES = 2 * KEYS  # bytes of a group's scales


@njit(forceinline=True)
def block_bytes(format: int, dim: int) -> int:
    """`KvFormat.block_bytes`."""
    if format == _PLAIN:
        return KEYS * dim * 2
    if format == _IN_KEYS:
        return 0
    if format == _BYTES:
        return KEYS * (dim + dim // GROUP * 2)
    return KEYS * (dim // 2 + dim // GROUP * 2)


@njit(forceinline=True)
def keys_block_bytes(format: int, dim: int) -> int:
    """Of a block of keys, with the mean where there is one."""
    return block_bytes(format, dim) + (2 * dim if format == _NIBBLES else 0)


@njit(forceinline=True)
def _code(x: float, inverse: float) -> int:
    """The whole number nearest to x * inverse, halves away from zero."""
    scaled = float32(x * inverse)
    half = 0.5 if scaled >= float32(0.0) else -0.5
    return int(float32(scaled + float32(half)))


@njit(forceinline=True)
def _number(source: int, mean: int, i: int) -> Any:
    """Number i of those at `source`, f32, less the mean of such, f16, if there is one."""
    x = load_f32(int64(source + 4 * i))
    if mean != 0:
        x = float32(x - load_f16(int64(mean + 2 * i)))
    return x


@njit(forceinline=True)
def _scale(source: int, mean: int, format: int, target: int) -> Any:
    """Write the scale of GROUP numbers to `target`; returns its inverse, 0 where all codes will be 0."""
    largest, signed = float32(0.0), float32(0.0)
    for i in range(GROUP):
        x = _number(source, mean, i)
        if abs(x) > largest:
            largest, signed = abs(x), x
    scale = float32(largest / float32(127.0)) if format == _BYTES else float32(signed / float32(-8.0))
    store_f16(int64(target), scale)
    kept = load_f16(int64(target))
    return float32(0.0) if kept == float32(0.0) else float32(float32(1.0) / kept)


@njit(forceinline=True)
def _write_group(source: int, mean: int, format: int, scale_at: int, codes_at: int, step: int) -> None:
    """GROUP numbers of one position; from byte to byte of the codes it is `step`."""
    inverse = _scale(source, mean, format, scale_at)
    if format == _BYTES:
        for i in range(GROUP):
            code = min(127, max(-127, _code(_number(source, mean, i), inverse)))
            store_u8(int64(codes_at + i * step), uint8(code & 255))
        return
    for i in range(_HALF):
        low = min(7, max(-8, _code(_number(source, mean, i), inverse))) + 8
        high = min(7, max(-8, _code(_number(source, mean, i + _HALF), inverse))) + 8
        store_u8(int64(codes_at + i * step), uint8(low | (high << 4)))


@njit(forceinline=True)
def _write_mean(block: int, dim: int, out: int) -> None:
    """The mean of a block of q4_0 keys, position after position; 0 without a block."""
    for i in range(dim):
        if block == 0:
            store_f16(int64(out + 2 * i), float32(0.0))
            continue
        group = block + i // GROUP * block_bytes(_NIBBLES, GROUP)
        codes, shift = group + _SCALES + i % _HALF * KEYS, i % GROUP // _HALF * 4
        total = float32(0.0)
        for lane in range(KEYS):
            code = (int64(load_u8(int64(codes + lane))) >> shift & 15) - 8
            total = float32(total + float32(code) * load_f16(int64(group + 2 * lane)))
        mean = load_f16(int64(block + block_bytes(_NIBBLES, dim) + 2 * i))
        store_f16(int64(out + 2 * i), float32(float32(total * float32(1.0 / KEYS)) + mean))


def build_kv_write(ops: Ops) -> Any:
    """See `abi.KvWrite`."""
    lanes, load, store_halves = ops.lanes, ops.load_floats, ops.store_halves

    @njit(forceinline=True)
    def write_key(source: int, mean: int, dim: int, format: int, block: int, lane: int) -> None:
        if format == _PLAIN:
            for i in range(dim):
                store_f16(int64(block + (i * KEYS + lane) * 2), load_f32(int64(source + 4 * i)))
            return
        group_bytes = block_bytes(format, GROUP)
        for group in range(dim // GROUP):
            at = block + group * group_bytes
            less = mean + 2 * GROUP * group if mean != 0 else 0
            _write_group(source + 4 * GROUP * group, less, format, at + 2 * lane, at + _SCALES + lane, KEYS)

    @njit(forceinline=True)
    def write_value(source: int, dim: int, format: int, block: int, position: int) -> None:
        if format == _PLAIN:
            target, i = block + position * dim * 2, 0
            while i + lanes <= dim:
                store_halves(int64(target + 2 * i), load(int64(source + 4 * i)))
                i += lanes
            while i < dim:
                store_f16(int64(target + 2 * i), load_f32(int64(source + 4 * i)))
                i += 1
            return
        width = GROUP if format == _BYTES else _HALF  # bytes of a group's codes
        groups = dim // GROUP
        codes = block + groups * _SCALES + position * groups * width
        for group in range(groups):
            scale = block + group * _SCALES + 2 * position
            _write_group(source + 4 * GROUP * group, 0, format, scale, codes + group * width, 1)

    def kv_write(arguments: int, low: int, high: int) -> None:
        keys_at, values_at = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        keys_stride, values_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        k, v = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        heads, dim = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        dim_v, keys_format = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        values_format = load_i64(int64(arguments + 80))
        for item in range(low, high):
            span, head = arguments + LIST_AT + item // heads * _SPAN_BYTES, item % heads
            table, start = load_i64(int64(span)), load_i64(int64(span + 8))
            row, rows = load_i64(int64(span + 16)), load_i64(int64(span + 24))
            for token in range(rows):
                page = load_i64(int64(table + (start + token) // KEYS_PER_PAGE * 8))
                within = (start + token) % KEYS_PER_PAGE
                number, lane = within // KEYS, within % KEYS
                keys, mean = page + keys_at + head * keys_stride, 0
                block = keys + number * keys_block_bytes(keys_format, dim)
                if keys_format == _NIBBLES:
                    mean = block + block_bytes(keys_format, dim)
                    if lane == 0:
                        before = 0
                        if number > 0:
                            before = block - keys_block_bytes(keys_format, dim)
                        elif start + token > 0:
                            page_before = load_i64(int64(table + ((start + token) // KEYS_PER_PAGE - 1) * 8))
                            last = (KEYS_PER_PAGE // KEYS - 1) * keys_block_bytes(keys_format, dim)
                            before = page_before + keys_at + head * keys_stride + last
                        _write_mean(before, dim, mean)
                write_key(k + ((row + token) * heads + head) * dim * 4, mean, dim, keys_format, block, lane)
                if values_format == _IN_KEYS:
                    continue
                block = page + values_at + head * values_stride + number * block_bytes(values_format, dim_v)
                write_value(v + ((row + token) * heads + head) * dim_v * 4, dim_v, values_format, block, lane)

    return kv_write, kernel_signature()


def build_widen(ops: Ops) -> Any:
    """widen_keys(block, dim, format, out): a block of keys, f32, in panels of two vectors of positions: (KEYS / panel,
    dim, panel); widen_values(block, n, dim, padded, format, out): n positions of a block of values in panels of two
    vectors of dimensions, 0 beyond dim: (padded / panel, KEYS, panel). So what a chain of sums reads lies side by side.
    Of what is quantised the codes, without their scales."""
    lanes, load_halves, store = ops.lanes, ops.load_halves, ops.store_floats
    load_bytes, load_low, load_high = (
        ops.load_bytes_as_floats,
        ops.load_low_nibbles_as_floats,
        ops.load_high_nibbles_as_floats,
    )
    panel = 2 * lanes

    @njit(forceinline=True)
    def key_at(i: int, j: int, dim: int) -> int:
        """Bytes to dimension i of the vector of positions from j on."""
        return (j // panel * dim * panel + i * panel + j % panel) * 4

    @njit(forceinline=True)
    def value_at(p: int, i: int) -> int:
        """Bytes to dimension i of position p."""
        return (i // panel * KEYS * panel + p * panel + i % panel) * 4

    @njit(forceinline=True)
    def widen_keys(block: int, dim: int, format: int, out: int) -> None:
        if format == _PLAIN:
            for i in range(dim):
                for j in range(0, KEYS, lanes):
                    store(int64(out + key_at(i, j, dim)), load_halves(int64(block + 2 * (i * KEYS + j))))
            return
        for group in range(dim // GROUP):
            codes, first = block + group * block_bytes(format, GROUP) + _SCALES, group * GROUP
            if format == _BYTES:
                for i in range(GROUP):
                    for j in range(0, KEYS, lanes):
                        store(int64(out + key_at(first + i, j, dim)), load_bytes(int64(codes + i * KEYS + j)))
            else:
                for i in range(_HALF):
                    for j in range(0, KEYS, lanes):
                        both = int64(codes + i * KEYS + j)
                        store(int64(out + key_at(first + i, j, dim)), load_low(both))
                        store(int64(out + key_at(first + i + _HALF, j, dim)), load_high(both))

    @njit(forceinline=True)
    def widen_plain(v: int, n: int, dim: int, padded: int, out: int) -> None:
        for p in range(n):
            i = 0
            while i + lanes <= dim:
                store(int64(out + value_at(p, i)), load_halves(int64(v + (p * dim + i) * 2)))
                i += lanes
            while i < dim:
                store_f32(int64(out + value_at(p, i)), load_f16(int64(v + (p * dim + i) * 2)))
                i += 1
            while i < padded:
                store_f32(int64(out + value_at(p, i)), float32(0.0))
                i += 1

    @njit(forceinline=True)
    def widen_values(block: int, n: int, dim: int, padded: int, format: int, out: int) -> None:
        if format == _PLAIN:
            widen_plain(block, n, dim, padded, out)
            return
        codes = block + dim // GROUP * _SCALES
        for p in range(n):
            if format == _BYTES:
                for i in range(0, dim, lanes):
                    store(int64(out + value_at(p, i)), load_bytes(int64(codes + p * dim + i)))
                continue
            for group in range(dim // GROUP):
                for i in range(0, _HALF, lanes):
                    both, first = int64(codes + p * (dim // 2) + group * _HALF + i), group * GROUP + i
                    store(int64(out + value_at(p, first)), load_low(both))
                    store(int64(out + value_at(p, first + _HALF)), load_high(both))

    return widen_keys, widen_values


def build_rotate(ops: Ops) -> Any:
    """See `abi.Rotate`: butterflies of neighbours, then of neighbouring pairs, ..., as `page_arrays.rotated`."""
    lanes, load, store, plus, minus, times = ops.lanes, ops.load_floats, ops.store_floats, ops.add, ops.sub, ops.mul
    splat, butterflies = ops.splat, ops.butterflies

    def rotate(arguments: int, low: int, high: int) -> None:
        x, out = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        size, factor = load_i64(int64(arguments + 16)), splat(load_f32(load_i64(int64(arguments + 24))))
        for item in range(low, high):
            source, target = x + item * size * 4, out + item * size * 4
            for i in range(0, size, lanes):
                store(int64(target + 4 * i), butterflies(load(int64(source + 4 * i))))
            step = lanes
            while step < size:
                for first in range(0, size, 2 * step):
                    for i in range(first, first + step, lanes):
                        one, other = int64(target + 4 * i), int64(target + 4 * (i + step))
                        a, b = load(one), load(other)
                        store(one, plus(a, b))
                        store(other, minus(a, b))
                step *= 2
            for i in range(0, size, lanes):
                store(int64(target + 4 * i), times(load(int64(target + 4 * i)), factor))

    return rotate, kernel_signature()
