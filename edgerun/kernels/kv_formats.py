"""How the keys and values of a page are written down.

Keys are turned, (kv_heads, KEYS_PER_PAGE / KEYS, head_dim, KEYS): position p of a block is lane p. Values lie position
by position, (kv_heads, KEYS_PER_PAGE, head_dim_v).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.kernels.attention_layout import KEYS_PER_PAGE


@dataclass(frozen=True)
class KvFormat:
    """`name`: as users and kernels call it."""

    name: str

    def keys_bytes(self, head_dim: int) -> int:
        """Of one head's keys in a page."""
        return KEYS_PER_PAGE * head_dim * 2

    def values_bytes(self, head_dim_v: int) -> int:
        """Of one head's values in a page."""
        return KEYS_PER_PAGE * head_dim_v * 2


F16 = KvFormat("f16")
