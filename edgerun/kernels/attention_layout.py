"""How attention divides its work, and how keys lie: shared by the kernels, by the cache, and by those who lay out
scratch memory.

Keys are kept turned, (kv_heads, blocks, head_dim, KEYS) f16: position p is lane p % KEYS of block p // KEYS. So a
vector holds one dimension of as many positions, no sum crosses lanes, and one token and a prompt add up alike. Values
lie position by position, (kv_heads, room, head_dim_v) f16.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

F16 = NDArray[np.float16]
Position = TypeVar("Position", int, NDArray[np.int64])

KEYS = 64  # positions of a block: its weights are made together
CHUNK = 256  # positions that are summed apart from others, and then joined with them in ascending order
TILE = 32  # tokens of an item, in prompts


def keys_shape(kv_heads: int, positions: int, head_dim: int) -> tuple[int, int, int, int]:
    """Of the keys of so many positions."""
    return kv_heads, -(-positions // KEYS), head_dim, KEYS


def write_keys(keys: F16, x: NDArray[np.float32], start: int) -> None:
    """keys (kv_heads, blocks, head_dim, KEYS), positions start and on = x (T, kv_heads, head_dim)."""
    positions = np.arange(start, start + len(x))
    keys[:, positions // KEYS, :, positions % KEYS] = x


def read_keys(keys: F16, end: int) -> F16:
    """keys (kv_heads, blocks, head_dim, KEYS) -> the first `end` of them, (kv_heads, end, head_dim), a copy."""
    kv_heads, _, head_dim, _ = keys.shape
    blocks = -(-end // KEYS)
    return keys[:, :blocks].transpose(0, 1, 3, 2).reshape(kv_heads, blocks * KEYS, head_dim)[:, :end].copy()


def decode_chunks(first: Position, end: int) -> Position:
    """How many chunks the positions first .. end - 1 lie in; of one layer, or of many at once."""
    return (end - 1) // CHUNK - first // CHUNK + 1


def decode_scratch_bytes() -> int:
    """What one thread needs in `attention_kernels.build_attention_decode`, in whole cache lines."""
    return 4 * KEYS * 4


def prompt_scratch_bytes(head_dim: int, head_dim_v: int, group: int, lanes: int) -> int:
    """What one thread needs in `attention_kernels.build_attention_prompt`, in whole cache lines."""
    padded = -(-head_dim_v // (2 * lanes)) * 2 * lanes
    floats = head_dim * KEYS + KEYS * padded + 4 * KEYS + 2 * (TILE * group + 4) * (padded + 2)
    return -(-floats * 4 // 64) * 64
