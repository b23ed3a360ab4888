"""How rows of activations lie, once quantised: int8 in blocks with an f32 scale, and sums that save the products work.

A weight is often scale * (code - b): the b is taken off as b times the sum of a part's activations, in exact integers,
which stands here ready, negative, so that a chain of products can start from it.

"q8", of a block of 32 columns, 24 bytes:

    0   -8 S    4  -16 S    8  -128 S    i32, S = sum of 32 quants
    12  scale * S    f32, of the scale before it was rounded (`quantize_kernels`)
    16  -16 S0    20  -16 S1    i32, of the first and the last 16 quants

"q8k", of a block of 256 columns, 148 bytes:

    0    -32 S16    16 x i32, of 16 quants each
    64   -128 S32   8 x i32, of 32 each
    96   S32        8 x i16, in the order 0 2 1 3 4 6 5 7, in which pairs of minima come out of a word
    112  S16        16 x i16, by fours in the same order
    144  -8 S256    i32

"parts", for tiles of bf16: each number as a sum of three bf16, the nearest of it, of what is left, and the rest, which
is exact; of a block of 32 columns, the last one filled up with zeros, 192 bytes:

    0    32 x the first    64    32 x the second    128    32 x the third

and, where rows are few, in the place of scales the same as f32, 384 bytes a block, for products with a single one.

Rows lie a line of 64 bytes further apart than they are long: at a multiple of 4,096 bytes they would push each other
out of the first-level cache. (Numbers beyond the largest bf16, 3.39e38, become infinite, and an infinite one NaN.)
"""

from __future__ import annotations

Q8_COLS, Q8_SUMS_BYTES = 32, 24
Q8K_COLS, Q8K_SUMS_BYTES = 256, 148
SCALED_SUM = 12  # of "q8": what a block's smallest value is multiplied with
MIN_SUMS_32, MIN_SUMS_16 = 96, 112  # of "q8k"

PARTS = 3
PARTS_COLS, PARTS_BYTES = 32, 192  # of a block
WIDE_ROWS = 16  # at most, that have their parts as f32, too
PARTS_BEYOND = 64  # bytes that rows are further apart


def parts_row_bytes(cols: int) -> int:
    """From row to row of "parts"."""
    return -(-cols // PARTS_COLS) * PARTS_BYTES + PARTS_BEYOND


def wide_row_bytes(cols: int) -> int:
    """From row to row of the same as f32."""
    return -(-cols // PARTS_COLS) * 2 * PARTS_BYTES


FORMS = {"q8": (Q8_COLS, Q8_SUMS_BYTES), "q8k": (Q8K_COLS, Q8K_SUMS_BYTES)}

# (beyond, columns of a part) -> first byte, bytes on for the next part, how far what stands there is to be shifted up
_Q8_STARTS = {(8, 32): (0, 0, 0), (16, 32): (4, 0, 0), (128, 32): (8, 0, 0), (16, 16): (16, 4, 0)}
_Q8K_STARTS = {(32, 16): (0, 4, 0), (128, 16): (0, 4, 2), (128, 32): (64, 4, 0), (8, 256): (144, 0, 0)}


def minimum_place(part_cols: int, part: int) -> tuple[int, int]:
    """Of "q8k": where, from the first byte of a block's sums on, the pair of i16 stands in which a part's sum is, and
    which of the two it is."""
    base = MIN_SUMS_32 if part_cols == 32 else MIN_SUMS_16
    place = part // 4 * 4 + (0, 2, 1, 3)[part % 4]
    return base + place // 2 * 4, place % 2


def start_offset(form: str, beyond: int, part_cols: int, part: int) -> tuple[int, int]:
    """Where, from the first byte of the sums of the block on, -`beyond` times the sum of a part's activations stands,
    and by how many bits it is to be shifted up. In "q8" parts are counted within their 32 columns."""
    first, step, shift = (_Q8_STARTS if form == "q8" else _Q8K_STARTS)[beyond, part_cols]
    return first + step * part, shift
