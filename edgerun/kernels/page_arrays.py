"""Keys and values in pages as numpy arrays: what the reference kernels and tests read and write."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE
from edgerun.kernels.pages import LayerLayout, LayerPages

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]


def write_positions(pages: LayerPages, start: int, k: F32, v: F32) -> None:
    """Positions start and on = k (T, kv_heads, head_dim), v (T, kv_heads, head_dim_v)."""
    for index, low, high in _pieces(start, start + len(k)):
        keys, values = page_arrays(int(pages.table[index]), pages.layout)
        within, rows = np.arange(low, high) % KEYS_PER_PAGE, slice(low - start, high - start)
        keys[:, within // KEYS, :, within % KEYS] = k[rows]
        values[:, within] = v[rows].transpose(1, 0, 2)


def read_positions(pages: LayerPages, first: int, end: int) -> tuple[F32, F32]:
    """Positions first .. end - 1: keys (kv_heads, n, head_dim) and values (kv_heads, n, head_dim_v), copies."""
    layout = pages.layout
    k = np.empty((layout.kv_heads, end - first, layout.head_dim), np.float32)
    v = np.empty((layout.kv_heads, end - first, layout.head_dim_v), np.float32)
    for index, low, high in _pieces(first, end):
        keys, values = page_arrays(int(pages.table[index]), layout)
        within, rows = slice(low % KEYS_PER_PAGE, low % KEYS_PER_PAGE + high - low), slice(low - first, high - first)
        by_position = keys.transpose(0, 1, 3, 2).reshape(layout.kv_heads, KEYS_PER_PAGE, layout.head_dim)
        k[:, rows], v[:, rows] = by_position[:, within], values[:, within]
    return k, v


def page_arrays(address: int, layout: LayerLayout) -> tuple[F16, F16]:
    """A layer's part of the page at `address`: keys (kv_heads, KEYS_PER_PAGE / KEYS, head_dim, KEYS) and values
    (kv_heads, KEYS_PER_PAGE, head_dim_v), not copies."""
    heads, blocks = layout.kv_heads, KEYS_PER_PAGE // KEYS
    keys = _memory(address + layout.keys_at, heads * layout.keys_stride).view(np.float16)
    values = _memory(address + layout.values_at, heads * layout.values_stride).view(np.float16)
    return keys.reshape(heads, blocks, layout.head_dim, KEYS), values.reshape(heads, KEYS_PER_PAGE, layout.head_dim_v)


def _memory(address: int, n_bytes: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))


def _pieces(first: int, end: int) -> list[tuple[int, int, int]]:
    """(page, first position, end position) of the positions first .. end - 1."""
    starts = [first, *range((first // KEYS_PER_PAGE + 1) * KEYS_PER_PAGE, end, KEYS_PER_PAGE)]
    return [(low // KEYS_PER_PAGE, low, high) for low, high in zip(starts, [*starts[1:], end], strict=True)]
