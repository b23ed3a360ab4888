"""How products of prompts divide their work: shared by the kernels and by those who lay out their scratch memory."""

from __future__ import annotations

TOKENS = 3  # of a tile; two groups of rows times three tokens: six sums, two weights and two spare registers of sixteen
GROUPS = 2  # of rows in a tile: one activation that is loaded serves both
SLAB_BYTES = 16 << 10  # of unpacked weights that all tokens pass before the next: half of a first-level cache
TOKENS_AT_ONCE = 128  # of a product (or one more): their quants stay in the second-level cache
TILES = -(-(TOKENS_AT_ONCE + 1) // TOKENS)


def prompt_scratch_bytes(lanes: int) -> int:
    """What one thread needs in `tile_driver`: the sums of all tokens and a slab, in whole cache lines."""
    return -(-(TILES * TOKENS * GROUPS * lanes * 4 + SLAB_BYTES * lanes // 8) // 64) * 64
