"""Types below four bits whose codes name a word of a grid (`grids`): IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S.

Blocks of 256 weights. Signs stand apart from magnitudes: eight bits for eight weights, or seven where their product is
positive. Source: ggml-quants.c (Kawrakow), the `gguf` package, whose order of multiplications is kept to the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.quants import grids
from edgerun.formats.quants.legacy import F32, U8, half

_DELTA = np.float32(0.125)  # IQ1 moves a whole group of eight up or down by this
_SIGNS_OF_BYTE = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), -1, 1)
_SIGNS = _SIGNS_OF_BYTE.astype(np.float32)  # (256, 8): bit j set -> weight j is negative
_SEVEN = np.arange(128, dtype=np.uint8)
_EVEN_SIGNS = _SIGNS[_SEVEN | (np.bitwise_count(_SEVEN) & 1) << 7]  # (128, 8): an even number of negatives


def _words(grid: grids.Grid, codes: NDArray[np.unsignedinteger]) -> F32:
    """(...,) codes -> (..., width) magnitudes."""
    return grids.words(grid)[codes].astype(np.float32)


def _u16(blocks: U8) -> NDArray[np.uint16]:
    return np.ascontiguousarray(blocks).view(np.uint16)


def _u32(blocks: U8) -> NDArray[np.uint32]:
    return np.ascontiguousarray(blocks).view(np.uint32)


def _nibble_pairs(packed: U8) -> U8:
    """(n, m) bytes -> (n, 2 m): of each byte the low nibble, then the high one."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)


def _bit_fields(packed: NDArray[np.unsignedinteger], width: int, count: int) -> NDArray[np.unsignedinteger]:
    """(n, m) words -> (n, m, count): each word's fields of `width` bits from the bottom up."""
    shifts = (width * np.arange(count)).astype(packed.dtype)
    return (packed[:, :, None] >> shifts) & packed.dtype.type((1 << width) - 1)


def f32_from_iq2_xxs(blocks: U8) -> F32:
    """d; for each 32 weights four codes and a word of four times seven signs with the scale on top."""
    groups = _u32(blocks[:, 2:]).reshape(-1, 8, 2)
    codes = np.ascontiguousarray(groups[:, :, 0]).view(np.uint8).reshape(-1, 8, 4)
    return _with_even_signs(half(blocks, 0), groups[:, :, 1], _words(grids.IQ2_XXS, codes), np.float32(0.25))


def f32_from_iq3_xxs(blocks: U8) -> F32:
    """d; 64 codes of four weights; for each 32 weights a word as in IQ2_XXS."""
    values = _words(grids.IQ3_XXS, blocks[:, 2:66]).reshape(-1, 8, 4, 8)
    return _with_even_signs(half(blocks, 0), _u32(blocks[:, 66:98]), values, np.float32(0.5))


def _with_even_signs(d: F32, words: NDArray[np.uint32], values: F32, unit: np.float32) -> F32:
    """d (n, 1), words (n, 8) of signs and scales, values (n, 8, 4, 8) -> (n, 256)."""
    scales = d * (np.float32(0.5) + (words >> np.uint32(28)).astype(np.float32)) * unit
    signs = _EVEN_SIGNS[_bit_fields(words, 7, 4)]
    return (scales[:, :, None, None] * values * signs).reshape(-1, 256)


def f32_from_iq2_xs(blocks: U8) -> F32:
    """d; 32 words of a nine-bit code and seven signs; a four-bit scale for each 16 weights."""
    words = _u16(blocks[:, 2:66])
    signs = _EVEN_SIGNS[words >> np.uint16(9)]
    return _scaled_by_nibbles(blocks, 66, _words(grids.IQ2_XS, words & np.uint16(511)), signs)


def f32_from_iq2_s(blocks: U8) -> F32:
    """d; 32 low bytes of codes, 32 of signs, two high bits of each code; a four-bit scale for each 16 weights."""
    high = _bit_fields(blocks[:, 66:74], 2, 4).reshape(-1, 32)
    codes = blocks[:, 2:34] | high.astype(np.uint16) << 8
    return _scaled_by_nibbles(blocks, 74, _words(grids.IQ2_S, codes), _SIGNS[blocks[:, 34:66]])


def _scaled_by_nibbles(blocks: U8, at: int, values: F32, signs: F32) -> F32:
    """Values and signs (n, 32, 8), eight bytes of scales from byte `at` -> (n, 256)."""
    scales = half(blocks, 0) * (np.float32(0.5) + _nibble_pairs(blocks[:, at : at + 8])) * np.float32(0.25)
    return (scales[:, :, None, None] * values.reshape(-1, 16, 2, 8) * signs.reshape(-1, 16, 2, 8)).reshape(-1, 256)


def f32_from_iq3_s(blocks: U8) -> F32:
    """d; 64 low bytes of codes of four weights, their ninth bits, 32 bytes of signs; a scale for each 32 weights."""
    ninth = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little")
    codes = blocks[:, 2:66] | ninth.astype(np.uint16) << 8
    scales = half(blocks, 0) * (1 + 2 * _nibble_pairs(blocks[:, 106:110])).astype(np.float32)
    values = _words(grids.IQ3_S, codes).reshape(-1, 8, 4, 8)
    signs = _SIGNS[blocks[:, 74:106]].reshape(-1, 8, 4, 8)
    return (scales[:, :, None, None] * values * signs).reshape(-1, 256)


def f32_from_iq1_s(blocks: U8) -> F32:
    """d; 32 low bytes of codes; for each 32 weights a word of four times three high bits, the scale and the delta."""
    words = _u16(blocks[:, 34:50])
    codes = blocks[:, 2:34] | _bit_fields(words, 3, 4).reshape(-1, 32) << 8
    scales = half(blocks, 0) * (2 * ((words >> np.uint16(12)) & 7) + 1).astype(np.float32)
    delta = np.where(words & np.uint16(0x8000), -_DELTA, _DELTA)[:, :, None, None]
    values = _words(grids.IQ1, codes).reshape(-1, 8, 4, 8)
    return (scales[:, :, None, None] * (values + delta)).reshape(-1, 256)


def f32_from_iq1_m(blocks: U8) -> F32:
    """32 low bytes of codes; a nibble each of three high bits and the delta; four words of four three-bit scales, one
    for each 16 weights, whose top nibbles are the f16 scale of all."""
    words = _u16(blocks[:, 48:56])
    top = words >> np.uint16(12)
    d = (top[:, 0] | top[:, 1] << 4 | top[:, 2] << 8 | top[:, 3] << 12)[:, None].view(np.float16).astype(np.float32)
    scales = d * (2 * _bit_fields(words, 3, 4).reshape(-1, 16) + 1).astype(np.float32)
    high = _nibble_pairs(blocks[:, 32:48])
    codes = blocks[:, :32] | (high & 7).astype(np.uint16) << 8
    delta = np.where(high & 8, -_DELTA, _DELTA).reshape(-1, 16, 2, 1)
    values = _words(grids.IQ1, codes).reshape(-1, 16, 2, 8)
    return (scales[:, :, None, None] * (values + delta)).reshape(-1, 256)
