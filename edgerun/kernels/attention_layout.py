"""How attention divides its work: shared by the kernels and by those who lay out their scratch memory."""

from __future__ import annotations

CHUNK = 256  # positions of an item, in decode
TILE = 32  # tokens of an item, in prompts
KEYS = 64  # positions at a time, in prompts


def prompt_scratch_bytes(head_dim: int, head_dim_v: int, group: int, lanes: int) -> int:
    """What one thread needs in `attention_kernels.build_attention_prompt`, in whole cache lines."""
    padded = -(-head_dim_v // (2 * lanes)) * 2 * lanes
    floats = head_dim * KEYS + KEYS * padded + 4 * KEYS + (TILE * group + 4) * (padded + 2) + 4 * head_dim
    return -(-floats * 4 // 64) * 64
