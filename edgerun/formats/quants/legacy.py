"""Float types and the blocks of 32 of the first generation. Source: ggml-quants.c, the `gguf` package.

Dequantisers take blocks (n, block_bytes) u8 and give (n, block_size) f32; quantisers the other way round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def half(blocks: U8, at: int) -> F32:
    """The f16 at byte `at` of every block, as (n, 1) f32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def half_bytes(values: F32) -> U8:
    """(n, 1) f32 -> (n, 2) bytes of f16."""
    return values.astype(np.float16).view(np.uint8)


def nibbles(packed: U8) -> U8:
    """(n, 16) bytes -> (n, 32): the low nibbles, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def pack_nibbles(codes: U8) -> U8:
    """(n, 32) codes below 16 -> (n, 16) bytes."""
    return codes[:, :16] | (codes[:, 16:] << 4)


def _fifth_bits(blocks: U8, at: int) -> U8:
    """32 bits from byte `at` -> (n, 32) of 0 or 16."""
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return bits << 4


def f32_from_f32(blocks: U8) -> F32:
    return blocks.view(np.float32)


def f32_from_f16(blocks: U8) -> F32:
    return blocks.view(np.float16).astype(np.float32)


def f32_from_bf16(blocks: U8) -> F32:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def f32_from_q4_0(blocks: U8) -> F32:
    return half(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def f32_from_q4_1(blocks: U8) -> F32:
    return half(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + half(blocks, 2)


def f32_from_q5_0(blocks: U8) -> F32:
    codes = (nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)
    return half(blocks, 0) * codes.astype(np.float32)


def f32_from_q5_1(blocks: U8) -> F32:
    codes = nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return half(blocks, 0) * codes.astype(np.float32) + half(blocks, 2)


def f32_from_q8_0(blocks: U8) -> F32:
    return half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def round_away(x: F32) -> F32:
    """C's roundf: halves away from zero."""
    size = np.abs(x)
    floor = np.floor(size)
    return (np.sign(x) * (floor + np.floor(2 * (size - floor)))).astype(np.float32)


def _inverse(d: F32) -> F32:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def signed_peak(x: F32) -> F32:
    """(n, 1): the value of greatest magnitude, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)


def f32_to_f32(x: F32) -> U8:
    return x.view(np.uint8)


def f32_to_f16(x: F32) -> U8:
    return x.astype(np.float16).view(np.uint8)


def f32_to_bf16(x: F32) -> U8:
    """To nearest even; not-a-numbers stay quiet."""
    bits = x.view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = ((bits.astype(np.uint64) + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    quiet = ((bits & np.uint32(0xFFFF0000)) | np.uint32(64 << 16)) >> 16
    return np.where(nan, quiet.astype(np.uint16), rounded).view(np.uint8)


def f32_to_q4_0(x: F32) -> U8:
    d = signed_peak(x) / np.float32(-8)
    codes = np.trunc(x.astype(np.float64) * _inverse(d) + 8.5).astype(np.uint8).clip(0, 15)
    return np.concatenate([half_bytes(d), pack_nibbles(codes)], axis=1)


def f32_to_q4_1(x: F32) -> U8:
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    codes = np.trunc((x - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate([half_bytes(d), half_bytes(low), pack_nibbles(codes)], axis=1)


def _five_bits(codes: U8) -> U8:
    """(n, 32) codes below 32 -> 4 bytes of fifth bits, 16 of nibbles."""
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate([high, pack_nibbles(codes & 15)], axis=1)


def f32_to_q5_0(x: F32) -> U8:
    d = signed_peak(x) / np.float32(-16)
    codes = np.trunc(x.astype(np.float64) * _inverse(d) + 16.5).astype(np.uint8).clip(0, 31)
    return np.concatenate([half_bytes(d), _five_bits(codes)], axis=1)


def f32_to_q5_1(x: F32) -> U8:
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(31)
    codes = np.trunc((x - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8).clip(0, 31)
    return np.concatenate([half_bytes(d), half_bytes(low), _five_bits(codes)], axis=1)


def f32_to_q8_0(x: F32) -> U8:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    codes = round_away(x * _inverse(d)).astype(np.int8).view(np.uint8)
    return np.concatenate([half_bytes(d), codes], axis=1)
