"""Sequences of small groups, and what must be in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.checked_tensors import Form
from edgerun.kernels.page_arrays import read_positions, write_positions
from edgerun.kv import KvLayer, KvLedger, KvSequence, PagePool, layer_groups

LAYERS = [KvLayer(2, 4, 5), KvLayer(1, 4, 4, window=300), KvLayer(2, 3, 5), KvLayer(1, 4, 4, window=300)]
GROUPS = layer_groups(LAYERS)
WINDOW = 300
CAPACITY = 3000
REMEMBERED = 6 * sum(group.page_bytes for group in GROUPS)


def new_pool(limit_bytes: int | None = None) -> PagePool:
    pool = PagePool(GROUPS, KvLedger(limit_bytes))
    if limit_bytes is None:
        pool.prefixes.limit_bytes = REMEMBERED
    return pool


def restore(sequence: KvSequence, length: int, forms: Mapping[str, Form], read: Callable[[str], NDArray[Any]]) -> None:
    """As `Context.restore` does it, without anybody beside."""
    places = sequence.make_ready(length, forms)
    try:
        for name, place in places.items():
            place[...] = read(name)
    except BaseException:
        sequence.release()
        raise
    sequence.restored(length)


def write(sequence: KvSequence, tokens: list[int], at_once: int | None = None) -> None:
    """Append tokens: what is kept of one is made of it and of its position."""
    sequence.reserve(len(tokens), at_once)
    put(sequence, tokens)
    sequence.advance(len(tokens))


def put(sequence: KvSequence, tokens: list[int]) -> None:
    """What forward does after `reserve`."""
    if tokens:
        for layer, shape in enumerate(LAYERS):
            k, v = content(tokens, sequence.length, layer, shape)
            write_positions(sequence.pages(layer), sequence.length, k, v)


def content(tokens: list[int], start: int, layer: int, shape: KvLayer) -> tuple[np.ndarray, np.ndarray]:
    """Of some positions: keys (n, kv_heads, head_dim), values (n, kv_heads, head_dim_v), whole numbers up to 2047."""
    base = (np.array(tokens) * 37 + np.arange(start, start + len(tokens)) * 11 + layer).astype(np.int64)

    def spread(heads: int, dim: int, more: int) -> np.ndarray:
        places = np.arange(heads * dim).reshape(heads, dim)
        return ((base[:, None, None] + 5 * places + more) % 2048).astype(np.float32)

    return spread(shape.kv_heads, shape.head_dim, 0), spread(shape.kv_heads, shape.head_dim_v, 1000)


def check(sequence: KvSequence, tokens: list[int]) -> None:
    """All that the next position sees is there."""
    sequence.check_integrity()
    assert sequence.length == len(tokens)
    if not tokens:
        return
    for layer, shape in enumerate(LAYERS):
        first = max(0, len(tokens) - shape.window + 1) if shape.window else 0
        table = np.array(
            [0 if page is None else page.address for page in sequence._held[int(shape.window > 0)].pages], np.int64
        )
        pages = type(sequence.pages(layer))(table, sequence.pages(layer).layout)
        k, v = read_positions(pages, first, len(tokens))
        want_k, want_v = content(tokens[first:], first, layer, shape)
        assert np.array_equal(k, want_k.transpose(1, 0, 2)), layer
        assert np.array_equal(v, want_v.transpose(1, 0, 2)), layer
