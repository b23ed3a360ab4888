"""How attention divides its work, and how keys lie: shared by the kernels, by the cache, and by those who lay out
scratch memory.

Keys are kept turned, block by block (head_dim, KEYS): position p is lane p % KEYS of block p // KEYS. So a vector holds
one dimension of as many positions, no sum crosses lanes, and one token and a prompt add up alike. Values lie position
by position. Both lie in pages of KEYS_PER_PAGE positions (`pages`, `kv_formats`).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Position = TypeVar("Position", int, NDArray[np.int64])

KEYS = 64  # positions of a block: its weights are made together
KEYS_PER_PAGE = 256  # positions that are summed apart from others, and then joined with them in ascending order
_TILE_ROWS = 256  # of all heads of a kv head, that an item of a prompt has: what they all read is widened once for them
_MOST_TOKENS = 64  # of these
STRIP = 32  # rows of a tile whose weights stay in the nearest cache while they pass a block of values


def first_seen(end: int, window: int, chunked: bool = False) -> int:
    """The first position that a row sees of those before `end`, of which the last is its own. window: so many; 0: all;
    chunked: those of its own stretch of so many, counted from position 0."""
    if not window:
        return 0
    return (end - 1) // window * window if chunked else max(0, end - window)


def seen_apart(end: int, first: int, window: int, chunked: bool = False) -> tuple[int, int]:
    """Of the positions before `end`: the first that a row sees as they lie, and the end of those from 0 on that it sees
    apart, so many as `first` at most; 0: none, for it sees all."""
    begin = first_seen(end, window, chunked)
    return (begin, 0) if not first or begin == 0 else (max(begin, first), first)


def decode_pages(first: Position, end: int) -> Position:
    """How many pages the positions first .. end - 1 lie in; of one layer, or of many at once."""
    return (end - 1) // KEYS_PER_PAGE - first // KEYS_PER_PAGE + 1


def decode_scratch_bytes(groups: int, turned: int = 0) -> int:
    """What one thread needs in `attention_kernels.build_attention_decode`, in whole cache lines. groups: of quantised
    values; turned: dimensions of values that lie in keys."""
    return 4 * KEYS * 4 * (1 + groups) + 2 * KEYS * turned


def prompt_rows(lanes: int) -> int:
    """Rows of a tile that are summed together (`attention_rows`)."""
    return 8 if lanes == 16 else 4  # vectors of 16 lanes come with 32 registers; those of 8 take two of NEON's each


def prompt_tile(rows: int, kv_heads: int, group: int, threads: int) -> int:
    """Tokens of an item, in a prompt of so many rows: fewer where threads would have too few items to share."""
    shared = -(-rows * kv_heads // (4 * threads))
    return max(4, min(_MOST_TOKENS, _TILE_ROWS // group, shared))


def prompt_scratch_bytes(head_dim: int, head_dim_v: int, group: int, tile: int, lanes: int) -> int:
    """What one thread needs in `attention_kernels.build_attention_prompt`, in whole cache lines."""
    padded = -(-head_dim_v // (2 * lanes)) * 2 * lanes
    rows = prompt_rows(lanes)
    whole_tile = tile * group + rows
    floats = head_dim * KEYS + KEYS * padded + rows * KEYS + whole_tile * (KEYS + lanes + 2 * (padded + 2))
    return -(-floats * 4 // 64) * 64
