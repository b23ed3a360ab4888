"""How packed weights lie in memory, and the way there from GGUF blocks.

Groups of L rows (L = lanes of the instruction set; the last group is filled up with zero rows). In a group, block
after block along the columns; in a block, L values side by side, one a row, so that a vector register holds the
same thing of L rows and no sum ever crosses lanes. A "byte vector" is 4 L bytes: byte 4 r + j is row r's weight j.

    Q4_0   [d f16 x L] [4 byte vectors of nibbles]                                                18 bytes a row
    Q8_0   [d f16 x L] [8 byte vectors; vector t: weights 4 t + j]                                34
    Q4_K   [d x L] [dmin x L] [8 x scale u8 x L] [4 x (min, min) u8 x L] [8 x nibbles]           148
    Q5_K   as Q4_K, with 8 byte vectors of fifth bits before the nibbles                         180
    Q6_K   [d x L] [8 x (scale, scale) i8 x L] [16 byte vectors of high bits] [8 x nibbles]      210
    F32, F16, BF16   one block a column: [weight x L]

"nibbles" of 32 weights are four byte vectors: vector t has weight 4 t + j low and weight 16 + 4 t + j high. Fifth bits
of 32 weights are one byte vector: bit t belongs to low nibble vector t, bit 4 + t to the high one. High bits of 32
weights are two: vector h has two bits each of low 2 h, high 2 h, low 2 h + 1, high 2 h + 1, from the bottom up.
Six-bit scales of Q4_K and Q5_K stand as bytes (3 % more) because unpacking them costs more than reading them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType

U8 = NDArray[np.uint8]

TOKENS_AT_ONCE = 128  # of a product: their quants stay in the second-level cache
WIDE_TOKENS = 8  # that share a spread slab: see `spread_kernels`
WIDE_LEAST = 7  # of them, after the first eight: fewer are faster by four and one by one
_SLAB_WORDS = 24  # at most, of a slab's 32 columns with their scale and sums
NEURON_SLICE = 128  # columns of a result that neurons are added to at a time: they stay in the first-level cache
_PACKED_NAME = re.compile(r"r[1-9][0-9]?")
_ROWS_AT_ONCE = 512  # bounds the scratch memory of packing

BLOCK_COLS = {
    GgmlType.Q4_0: 32,
    GgmlType.Q8_0: 32,
    GgmlType.Q4_K: 256,
    GgmlType.Q5_K: 256,
    GgmlType.Q6_K: 256,
    GgmlType.F32: 1,
    GgmlType.F16: 1,
    GgmlType.BF16: 1,
}
BLOCK_BYTES = {  # of one row
    GgmlType.Q4_0: 18,
    GgmlType.Q8_0: 34,
    GgmlType.Q4_K: 148,
    GgmlType.Q5_K: 180,
    GgmlType.Q6_K: 210,
    GgmlType.F32: 4,
    GgmlType.F16: 2,
    GgmlType.BF16: 2,
}


def packed_bytes(type: GgmlType, rows: int, cols: int, lanes: int) -> int:
    """Size of a packed matrix."""
    groups = -(-rows // lanes)
    return groups * (cols // BLOCK_COLS[type]) * BLOCK_BYTES[type] * lanes


def layout_bytes(name: str, type: GgmlType, rows: int, cols: int) -> int:
    """Of a matrix in a layout by its name: "gguf", rows as they are in the file, or "r16", packed 16 at a time.
    UsageError for a layout or a shape that no matrix can have."""
    if rows < 1 or cols < 1 or cols % type.block_size:
        raise UsageError(f"{rows} x {cols} {type.name} is no matrix of whole blocks")
    if name == "gguf":
        return rows * type.row_bytes(cols)
    lanes = int(name[1:]) if _PACKED_NAME.fullmatch(name) else 0
    if not lanes or type not in BLOCK_COLS:
        raise UsageError(f"there is no layout {name!r} of {type.name}")
    return packed_bytes(type, rows, cols, lanes)


def wide_groups(lanes: int) -> int:
    """How many groups of rows share a spread slab."""
    return 256 // lanes


def wide_scratch_bytes(lanes: int) -> int:
    """Of a thread for a product of many tokens: a slab, products, what is kept beside weights, and sums."""
    eight, groups = WIDE_TOKENS * 4 * lanes, wide_groups(lanes)
    return _SLAB_WORDS * eight + groups * (eight + eight + TOKENS_AT_ONCE // WIDE_TOKENS * eight)


class PackedSizes:
    """What matrices take once packed for `lanes` rows at a time; 1: as in the file, for kernels that do not pack."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def has_kernels(self, type: GgmlType) -> bool:
        """Whether there are kernels for matrices of this type, or numpy computes them."""
        return self._lanes > 1 and type in BLOCK_COLS

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        """Bytes; types without kernels of their own stay as they are."""
        if not self.has_kernels(type):
            return rows * type.row_bytes(cols)
        return packed_bytes(type, rows, cols, self._lanes)


def pack(raw: U8, type: GgmlType, cols: int, lanes: int) -> U8:
    """GGUF rows (rows, row_bytes) -> packed (groups, blocks, block_bytes * lanes). Lossless."""
    rows = raw.shape[0]
    groups, blocks = -(-rows // lanes), cols // BLOCK_COLS[type]
    out = np.empty((groups, blocks, BLOCK_BYTES[type] * lanes), np.uint8)
    step = max(1, _ROWS_AT_ONCE // lanes)
    for low in range(0, groups, step):
        high = min(low + step, groups)
        part = np.asarray(raw[low * lanes : high * lanes])
        missing = (high - low) * lanes - part.shape[0]
        if missing:
            part = np.concatenate([part, np.zeros((missing, raw.shape[1]), np.uint8)])
        part = part.reshape(high - low, lanes, blocks, type.row_bytes(cols) // blocks)
        _PACK[type](part, out[low:high])
    return out


def _interleave(values: U8, lanes_axis: int = 1) -> U8:
    """(groups, L, blocks, n, item) u8 -> (groups, blocks, n * L * item): L neighbours of every item."""
    groups, lanes, blocks, n, item = values.shape
    unit = {1: np.uint8, 2: np.uint16, 4: np.uint32}[item]
    whole = np.ascontiguousarray(values).view(unit)[..., 0]  # (groups, L, blocks, n)
    turned = np.ascontiguousarray(whole.transpose(0, 2, 3, 1))
    return turned.view(np.uint8).reshape(groups, blocks, n * lanes * item)


def _nibbles(codes: U8) -> U8:
    """(groups, L, blocks, chunks, 32) codes, low four bits -> (groups, blocks, chunks * 16 * L)."""
    shaped = codes.reshape(*codes.shape[:-1], 2, 4, 4)  # (.., half, t, j)
    both = (shaped[..., 0, :, :] & 15) | (shaped[..., 1, :, :] << 4)
    return _interleave(both.reshape(*codes.shape[:3], -1, 4))


def _pack_floats(part: U8, out: U8) -> None:
    out[:] = _interleave(part[:, :, :, None, :])


def _pack_q4_0(part: U8, out: U8) -> None:
    lanes = part.shape[1]
    out[..., : 2 * lanes] = _interleave(part[..., None, :2])
    # a GGUF byte i is weight i low, weight 16 + i high: already our nibbles
    out[..., 2 * lanes :] = _interleave(part[..., 2:].reshape(*part.shape[:3], 4, 4))


def _pack_q8_0(part: U8, out: U8) -> None:
    lanes = part.shape[1]
    out[..., : 2 * lanes] = _interleave(part[..., None, :2])
    out[..., 2 * lanes :] = _interleave(part[..., 2:].reshape(*part.shape[:3], 8, 4))


def _scales_and_mins(packed: U8) -> tuple[U8, U8]:
    """Twelve bytes of Q4_K and Q5_K -> eight 6-bit scales, eight 6-bit mins."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    mins = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return scales, mins


def _nibble_codes(low_bytes: U8) -> U8:
    """128 bytes of Q4_K and Q5_K -> 256 codes: 64 at a time, the low nibbles of 32 bytes first, then the high."""
    q = low_bytes.reshape(*low_bytes.shape[:-1], 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=-2).reshape(*low_bytes.shape[:-1], 8, 32)


def _pack_q4_k(part: U8, out: U8) -> None:
    lanes = part.shape[1]
    scales, mins = _scales_and_mins(part[..., 4:16])
    out[..., : 4 * lanes] = _interleave(part[..., :4].reshape(*part.shape[:3], 2, 2))
    out[..., 4 * lanes : 12 * lanes] = _interleave(scales[..., None])
    out[..., 12 * lanes : 20 * lanes] = _interleave(mins.reshape(*part.shape[:3], 4, 2))
    out[..., 20 * lanes :] = _nibbles(_nibble_codes(part[..., 16:]))


def _pack_q5_k(part: U8, out: U8) -> None:
    lanes = part.shape[1]
    scales, mins = _scales_and_mins(part[..., 4:16])
    bits = part[..., 16:48]  # bit s of byte i: fifth bit of weight i of sub-block s
    fifth = ((bits[..., None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1).astype(np.uint8)  # (.., 8, 32)
    shaped = fifth.reshape(*part.shape[:3], 8, 8, 4)  # (.., sub-block, half * 4 + t, j)
    together = np.zeros((*part.shape[:3], 8, 4), np.uint8)
    for t in range(8):
        together |= shaped[..., t, :] << np.uint8(t)
    out[..., : 4 * lanes] = _interleave(part[..., :4].reshape(*part.shape[:3], 2, 2))
    out[..., 4 * lanes : 12 * lanes] = _interleave(scales[..., None])
    out[..., 12 * lanes : 20 * lanes] = _interleave(mins.reshape(*part.shape[:3], 4, 2))
    out[..., 20 * lanes : 52 * lanes] = _interleave(together)
    out[..., 52 * lanes :] = _nibbles(_nibble_codes(part[..., 48:]))


def _pack_q6_k(part: U8, out: U8) -> None:
    lanes = part.shape[1]
    low = part[..., :128].reshape(*part.shape[:3], 2, 2, 32)  # (.., half, which 32 bytes, l)
    high = part[..., 128:192].reshape(*part.shape[:3], 2, 32)
    codes = np.empty((*part.shape[:3], 2, 4, 32), np.uint8)  # weight 128 half + 32 quarter + l
    for quarter in range(4):
        nibble = low[..., quarter & 1, :] & 15 if quarter < 2 else low[..., quarter & 1, :] >> 4
        codes[..., quarter, :] = nibble | (((high >> (2 * quarter)) & 3) << 4)
    codes = codes.reshape(*part.shape[:3], 8, 32)
    top = (codes >> 4).reshape(*part.shape[:3], 8, 2, 2, 2, 4)  # (.., chunk, half, h, odd, j)
    bits = (
        top[..., 0, :, 0, :] | (top[..., 1, :, 0, :] << 2) | (top[..., 0, :, 1, :] << 4) | (top[..., 1, :, 1, :] << 6)
    )
    out[..., : 2 * lanes] = _interleave(part[..., None, 208:210])
    out[..., 2 * lanes : 18 * lanes] = _interleave(part[..., 192:208].reshape(*part.shape[:3], 8, 2))
    out[..., 18 * lanes : 82 * lanes] = _interleave(bits.reshape(*part.shape[:3], 16, 4))
    out[..., 82 * lanes :] = _nibbles(codes)


_PACK: dict[GgmlType, Callable[[U8, U8], None]] = {
    GgmlType.Q4_0: _pack_q4_0,
    GgmlType.Q8_0: _pack_q8_0,
    GgmlType.Q4_K: _pack_q4_k,
    GgmlType.Q5_K: _pack_q5_k,
    GgmlType.Q6_K: _pack_q6_k,
    GgmlType.F32: _pack_floats,
    GgmlType.F16: _pack_floats,
    GgmlType.BF16: _pack_floats,
}
