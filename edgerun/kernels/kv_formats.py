"""How the keys and values of a page are written down.

A page holds, of each head, KEYS_PER_PAGE / KEYS blocks of KEYS positions. In f16 a block of keys is turned, (head_dim,
KEYS): position p is lane p. A block of values is (KEYS, head_dim_v), position by position.

Quantised, GROUP dimensions of one position share an f16 scale, so that a position can be written without looking at
others; their signed codes times the scale are the numbers, exactly in f32. A block of keys is, of one group after
another, scales (KEYS,) and codes (GROUP, KEYS): turned, too. A block of values is scales (groups, KEYS), then codes
(KEYS, head_dim_v). Codes of q8_0 are bytes. Those of q4_0 are half a byte, + 8: dimension i of a group is in the low
half of byte i, i + GROUP / 2 in the high half of it.

Keys have a few dimensions that are large for all positions, which four bits would spend themselves on. So keys in q4_0
are rotated (`rotate`), queries with them, which changes no product of the two and spreads what is large over all
dimensions (QuaRot, Ashkboos et al. 2024). And what they have in common is taken off before they are quantised: the mean
of the block before, f16 (head_dim,), which stands at a block's end; of a sequence's first block it is 0.

In latent attention a position's value is the last dimensions of its key, so that nothing is kept for it (`IN_KEYS`).
Attention turns them back, block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgerun.errors import UnsupportedError
from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE

GROUP = 32  # dimensions that share a scale


@dataclass(frozen=True)
class KvFormat:
    """`name`: as users call it; `number`: as kernels do; `bits` of a code."""

    name: str
    number: int
    bits: int

    @property
    def is_plain(self) -> bool:
        """Whether these are f16 numbers, which kernels read as they lie."""
        return self.bits == 16

    def block_bytes(self, dim: int) -> int:
        """Of scales and codes of KEYS positions of one head of so many dimensions. UnsupportedError for what cannot
        be quantised."""
        if self.is_plain or not self.bits:
            return KEYS * dim * self.bits // 8
        if dim % GROUP:
            raise UnsupportedError(
                f"heads of {dim} dimensions cannot be kept in {self.name}, which takes multiples of {GROUP}; use f16"
            )
        return KEYS * (dim * self.bits // 8 + dim // GROUP * 2)

    @property
    def is_rotated(self) -> bool:
        """Whether keys are rotated, and have a mean taken off."""
        return self.bits == 4

    def keys_bytes(self, dim: int) -> int:
        """Of one head's keys in a page."""
        return KEYS_PER_PAGE // KEYS * (self.block_bytes(dim) + (2 * dim if self.is_rotated else 0))

    def values_bytes(self, dim: int) -> int:
        """Of one head's values in a page."""
        return KEYS_PER_PAGE // KEYS * self.block_bytes(dim)


F16 = KvFormat("f16", 0, 16)
Q8_0 = KvFormat("q8_0", 1, 8)
Q4_0 = KvFormat("q4_0", 2, 4)
IN_KEYS = KvFormat("in_keys", 3, 0)
KV_FORMATS = {format.name: format for format in (F16, Q8_0, Q4_0)}


def decode_kernel(keys: KvFormat, values: KvFormat) -> str:
    """The kernel that attends single rows to such keys and values."""
    return "attention_decode" if keys.is_plain and values.is_plain else f"attention_decode_{keys.name}_{values.name}"


_PAIRS = [(F16, IN_KEYS), *((keys, values) for keys in KV_FORMATS.values() for values in KV_FORMATS.values())]
OTHER_DECODE = {decode_kernel(*pair): pair for pair in _PAIRS if pair != (F16, F16)}


def rotation_size(dim: int) -> int:
    """Of the blocks that `rotate` mixes: the largest power of two that divides the dimensions."""
    return dim & -dim
