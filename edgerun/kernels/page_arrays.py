"""Keys and values in pages as numpy arrays: what the reference kernels and tests read and write (`kv_formats`)."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kernels.kv_formats import GROUP, KvFormat, rotation_size
from edgerun.kernels.pages import LayerLayout, LayerPages

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

_BLOCKS = KEYS_PER_PAGE // KEYS  # of a page


def write_positions(pages: LayerPages, start: int, k: F32, v: F32) -> None:
    """Positions start and on = k (T, kv_heads, head_dim), v (T, kv_heads, head_dim_v)."""
    layout = pages.layout
    for index, low, high in _pieces(start, start + len(k)):
        page, rows = int(pages.table[index]), slice(low - start, high - start)
        within = np.arange(low, high) % KEYS_PER_PAGE
        keys = _heads(page + layout.keys_at, layout.kv_heads, layout.keys_stride)
        if layout.keys.is_rotated:
            _write_rotated(keys, layout, _page_before(pages, index), within, rotated(k[rows]))
        else:
            _write_keys(keys, layout.keys, within, k[rows])
        if layout.values.bits:
            values = _heads(page + layout.values_at, layout.kv_heads, layout.values_stride)
            _write_values(values, layout.values, within, v[rows])


def read_positions(pages: LayerPages, first: int, end: int) -> tuple[F32, F32]:
    """Positions first .. end - 1: keys (kv_heads, n, head_dim) and values (kv_heads, n, head_dim_v), copies. Keys as
    they are kept: `rotated`, in formats that are."""
    layout = pages.layout
    k = np.empty((layout.kv_heads, end - first, layout.head_dim), np.float32)
    v = np.empty((layout.kv_heads, end - first, layout.head_dim_v), np.float32)
    for index, low, high in _pieces(first, end):
        page, rows = int(pages.table[index]), slice(low - first, high - first)
        within = slice(low % KEYS_PER_PAGE, low % KEYS_PER_PAGE + high - low)
        keys = _heads(page + layout.keys_at, layout.kv_heads, layout.keys_stride)
        k[:, rows] = _read_keys(keys, layout.keys, layout.head_dim)[:, within]
        if not layout.values.bits:
            v[:, rows] = k[:, rows, -layout.head_dim_v :]
            continue
        values = _heads(page + layout.values_at, layout.kv_heads, layout.values_stride)
        v[:, rows] = _read_values(values, layout.values, layout.head_dim_v)[:, within]
    return k, v


def rotated(x: F32) -> F32:
    """(..., head_dim): each block of `rotation_size` times a Hadamard matrix over the square root of its size."""
    size = rotation_size(x.shape[-1])
    y, step = x.reshape(-1, size), 1
    while step < size:
        pairs = y.reshape(-1, size // (2 * step), 2, step)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(-1, size)
        step *= 2
    return (y * np.float32(size**-0.5)).reshape(x.shape)


def quantise(x: F32, format: KvFormat) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """x (..., GROUP) -> scales (...), signed codes (..., GROUP)."""
    places = np.abs(x).argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(x, places, axis=-1)[..., 0]
    scales = (np.abs(largest) / np.float32(127) if format.bits == 8 else largest / np.float32(-8)).astype(np.float16)
    kept = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), kept, out=np.zeros_like(kept), where=kept != 0)
    scaled = x * inverse[..., None]
    codes = np.trunc(scaled + np.where(scaled >= 0, np.float32(0.5), np.float32(-0.5)))
    low, high = (-127, 127) if format.bits == 8 else (-8, 7)
    return scales, np.clip(codes, low, high).astype(np.int8)


def _means(heads: U8, layout: LayerLayout) -> NDArray[np.float16]:
    """(kv_heads, blocks, head_dim): what was taken off the keys of each block."""
    codes = layout.keys.block_bytes(layout.head_dim)
    return heads.reshape(len(heads), _BLOCKS, -1)[..., codes:].view(np.float16)


def _page_before(pages: LayerPages, index: int) -> U8 | None:
    """The keys of the page before the one with this index."""
    layout = pages.layout
    if index == 0:
        return None
    return _heads(int(pages.table[index - 1]) + layout.keys_at, layout.kv_heads, layout.keys_stride)


def _write_rotated(heads: U8, layout: LayerLayout, before: U8 | None, within: NDArray[np.int64], x: F32) -> None:
    """`_write_keys`, less the mean of the block before. before: the keys of the page before."""
    means = _means(heads, layout)
    for block in range(int(within[0]) // KEYS, int(within[-1]) // KEYS + 1):
        rows = within // KEYS == block
        if within[rows][0] % KEYS == 0:
            means[:, block] = 0
            source = heads if block else before
            if source is not None:
                keys = _read_keys(source, layout.keys, layout.head_dim, less_mean=True)
                total = np.zeros((layout.kv_heads, layout.head_dim), np.float32)
                for position in range((block - 1) % _BLOCKS * KEYS, ((block - 1) % _BLOCKS + 1) * KEYS):
                    total += keys[:, position]  # in the kernels' order
                means[:, block] = total * np.float32(1 / KEYS) + _means(source, layout)[:, block - 1]
        _write_keys(heads, layout.keys, within[rows], x[rows] - means[:, block])


def _write_keys(heads: U8, format: KvFormat, within: NDArray[np.int64], x: F32) -> None:
    """heads (kv_heads, bytes): the positions `within` the page = x (n, kv_heads, dim)."""
    blocks, lanes, dim = within // KEYS, within % KEYS, x.shape[2]
    if format.is_plain:
        heads.view(np.float16).reshape(len(heads), _BLOCKS, dim, KEYS)[:, blocks, :, lanes] = x
        return
    groups = dim // GROUP
    scales, codes = quantise(x.reshape(*x.shape[:2], groups, GROUP), format)
    kept_scales, kept_codes = _key_parts(heads, format, dim)
    kept_codes[:, blocks, :, :, lanes] = _packed(codes, format)
    kept_scales[:, blocks, :, lanes] = scales


def _read_keys(heads: U8, format: KvFormat, dim: int, *, less_mean: bool = False) -> F32:
    """heads (kv_heads, bytes) -> (kv_heads, KEYS_PER_PAGE, dim)."""
    n = len(heads)
    if format.is_plain:
        turned = heads.view(np.float16).reshape(n, _BLOCKS, dim, KEYS).astype(np.float32)
        return turned.transpose(0, 1, 3, 2).reshape(n, KEYS_PER_PAGE, dim)
    scales, codes = _key_parts(heads, format, dim)
    numbers = _unpacked(codes.transpose(0, 1, 4, 2, 3), format)  # (n, blocks, KEYS, groups, GROUP)
    x = (numbers * scales.transpose(0, 1, 3, 2).astype(np.float32)[..., None]).reshape(n, _BLOCKS, KEYS, dim)
    if format.is_rotated and not less_mean:
        x += heads.reshape(n, _BLOCKS, -1)[:, :, None, format.block_bytes(dim) :].view(np.float16)
    return x.reshape(n, KEYS_PER_PAGE, dim)


def _key_parts(heads: U8, format: KvFormat, dim: int) -> tuple[NDArray[np.float16], U8]:
    """Scales (kv_heads, blocks, groups, KEYS), bytes of codes (kv_heads, blocks, groups, width, KEYS)."""
    n, groups, width = len(heads), dim // GROUP, GROUP * format.bits // 8
    blocks = heads.reshape(n, _BLOCKS, -1)[..., : format.block_bytes(dim)].reshape(n, _BLOCKS, groups, -1)
    scales = blocks[..., : 2 * KEYS].view(np.float16)
    return scales, blocks[..., 2 * KEYS :].reshape(n, _BLOCKS, groups, width, KEYS)


def _write_values(heads: U8, format: KvFormat, within: NDArray[np.int64], x: F32) -> None:
    """heads (kv_heads, bytes): the positions `within` the page = x (n, kv_heads, dim)."""
    dim = x.shape[2]
    if format.is_plain:
        heads.view(np.float16).reshape(len(heads), KEYS_PER_PAGE, dim)[:, within] = x.transpose(1, 0, 2)
        return
    scales, codes = _value_parts(heads, format, dim)
    made_scales, made_codes = quantise(x.reshape(*x.shape[:2], dim // GROUP, GROUP), format)
    scales[:, within // KEYS, :, within % KEYS] = made_scales
    codes[:, within // KEYS, within % KEYS] = _packed(made_codes, format).transpose(1, 0, 2, 3)


def _read_values(heads: U8, format: KvFormat, dim: int) -> F32:
    """heads (kv_heads, bytes) -> (kv_heads, KEYS_PER_PAGE, dim)."""
    if format.is_plain:
        return heads.view(np.float16).reshape(len(heads), KEYS_PER_PAGE, dim).astype(np.float32)
    scales, codes = _value_parts(heads, format, dim)
    x = _unpacked(codes, format) * scales.astype(np.float32).transpose(0, 1, 3, 2)[..., None]
    return x.reshape(len(heads), KEYS_PER_PAGE, dim)


def _value_parts(heads: U8, format: KvFormat, dim: int) -> tuple[NDArray[np.float16], U8]:
    """Scales (kv_heads, blocks, groups, KEYS), bytes of codes (kv_heads, blocks, KEYS, groups, width)."""
    n, groups, width = len(heads), dim // GROUP, GROUP * format.bits // 8
    blocks = heads.reshape(n, _BLOCKS, format.block_bytes(dim))
    scales = blocks[..., : 2 * groups * KEYS].view(np.float16).reshape(n, _BLOCKS, groups, KEYS)
    return scales, blocks[..., 2 * groups * KEYS :].reshape(n, _BLOCKS, KEYS, groups, width)


def _packed(codes: NDArray[np.int8], format: KvFormat) -> U8:
    """(..., GROUP) -> (..., bytes)."""
    if format.bits == 8:
        return codes.view(np.uint8)
    half = (codes + 8).astype(np.uint8)
    return np.bitwise_or(half[..., : GROUP // 2], half[..., GROUP // 2 :] * 16, dtype=np.uint8)


def _unpacked(packed: U8, format: KvFormat) -> F32:
    """(..., bytes) -> (..., GROUP)."""
    if format.bits == 8:
        return packed.view(np.int8).astype(np.float32)
    return np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.float32) - np.float32(8)


def _heads(address: int, count: int, stride: int) -> U8:
    """(count, stride) bytes of memory, not a copy."""
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (count * stride)).from_address(address))
    return memory.reshape(count, stride)


def _pieces(first: int, end: int) -> list[tuple[int, int, int]]:
    """(page, first position, end position) of the positions first .. end - 1."""
    starts = [first, *range((first // KEYS_PER_PAGE + 1) * KEYS_PER_PAGE, end, KEYS_PER_PAGE)]
    return [(low // KEYS_PER_PAGE, low, high) for low, high in zip(starts, [*starts[1:], end], strict=True)]
