"""Superblocks of 256: Q2_K to Q6_K (`ksearch` writes them). Source: ggml-quants.c (Kawrakow), the `gguf` package."""

from __future__ import annotations

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, half

_BITS = np.arange(8, dtype=np.uint8)


def scales_and_mins(packed: U8) -> tuple[U8, U8]:
    """Twelve bytes of Q4_K and Q5_K (n, 12) -> eight 6-bit scales and eight 6-bit mins (n, 8)."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    mins = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return scales, mins


def _nibble_codes(packed: U8) -> U8:
    """128 bytes -> (n, 8, 32): of each 32 bytes the low nibbles, then the high ones."""
    q = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 8, 32)


def _two_bit_codes(packed: U8) -> U8:
    """64 bytes -> (n, 2, 4, 32): of each 32 bytes the four bit pairs from the bottom up."""
    q = packed.reshape(-1, 2, 1, 32)
    return (q >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3


def f32_from_q2_k(blocks: U8) -> F32:
    scales, d, dmin = blocks[:, :16], half(blocks, 80), half(blocks, 82)
    dl = (d * (scales & 15).astype(np.float32))[:, :, None]
    ml = (dmin * (scales >> 4).astype(np.float32))[:, :, None]
    codes = _two_bit_codes(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return (dl * codes - ml).reshape(-1, 256)


def f32_from_q3_k(blocks: U8) -> F32:
    packed, d = blocks[:, 96:108], half(blocks, 108)
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)  # 16 low nibbles
    high = (packed[:, None, 8:12] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).astype(np.int8) - np.int8(32)
    dl = (d * scales.astype(np.float32))[:, :, None]
    codes = _two_bit_codes(blocks[:, 32:96]).reshape(-1, 256).astype(np.int8)
    absent = ((blocks[:, None, :32] >> _BITS[:, None]) & 1) ^ 1  # (n, 8, 32)
    codes = codes - (absent.reshape(-1, 256).astype(np.int8) << np.int8(2))
    return (dl * codes.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


def f32_from_q4_k(blocks: U8) -> F32:
    scales, mins = scales_and_mins(blocks[:, 4:16])
    d = (half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    m = (half(blocks, 2) * mins.astype(np.float32))[:, :, None]
    return (d * _nibble_codes(blocks[:, 16:]).astype(np.float32) - m).reshape(-1, 256)


def f32_from_q5_k(blocks: U8) -> F32:
    scales, mins = scales_and_mins(blocks[:, 4:16])
    d = (half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    m = (half(blocks, 2) * mins.astype(np.float32))[:, :, None]
    fifth = (blocks[:, None, 16:48] >> _BITS[:, None]) & 1
    codes = _nibble_codes(blocks[:, 48:]) | (fifth << 4)
    return (d * codes.astype(np.float32) - m).reshape(-1, 256)


def _q6_codes(blocks: U8) -> U8:
    """(n, 256) codes 0..63 in weight order."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    return (low | (_two_bit_codes(blocks[:, 128:192]) << 4)).reshape(-1, 256)


def f32_from_q6_k(blocks: U8) -> F32:
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    d = (half(blocks, 208) * scales)[:, :, None]
    codes = _q6_codes(blocks).astype(np.int8) - np.int8(32)
    return (d * codes.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)
