"""Types of one or two bits for models trained to have few values: Q1_0 (two), TQ1_0 and TQ2_0 (three), Q2_0 (four).

Source: ggml-quants.c; the `gguf` package.
"""

from __future__ import annotations

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, half, half_bytes, round_away

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _trits(packed: U8, digits: int) -> U8:
    """(n, width) bytes -> (n, digits * width) of 0, 1, 2: most significant digit of all bytes first."""
    spread = packed[:, None, :] * _POWERS[:digits, None]  # wraps at 256 on purpose
    return ((spread.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(packed), -1)


def f32_from_tq1_0(blocks: U8) -> F32:
    codes = np.concatenate(
        [_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4)], axis=1
    )
    return half(blocks, 52) * (codes.astype(np.int8) - np.int8(1)).astype(np.float32)


def f32_from_tq2_0(blocks: U8) -> F32:
    q = blocks[:, :64].reshape(-1, 2, 1, 32)
    codes = (q >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)) & 3
    return half(blocks, 64) * (codes.reshape(-1, 256).astype(np.int8) - np.int8(1)).astype(np.float32)


def _ternary(x: F32) -> tuple[F32, U8]:
    d = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    return d, (round_away(x * inverse).astype(np.int8) + np.int8(1)).astype(np.uint8)


def _pack_trits(codes: U8) -> U8:
    """(n, 5, width) digits -> one byte each, rounded up so that `_trits` gives them back."""
    total = np.zeros((codes.shape[0], codes.shape[2]), np.uint16)
    for digit in range(codes.shape[1]):
        total = total * 3 + codes[:, digit]
    for _ in range(5 - codes.shape[1]):
        total = total * 3
    return ((total.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)


def f32_to_tq1_0(x: F32) -> U8:
    d, codes = _ternary(x)
    parts = (
        _pack_trits(codes[:, :160].reshape(-1, 5, 32)),
        _pack_trits(codes[:, 160:240].reshape(-1, 5, 16)),
        _pack_trits(codes[:, 240:].reshape(-1, 4, 4)),
    )
    return np.concatenate([*parts, half_bytes(d)], axis=1)


def f32_to_tq2_0(x: F32) -> U8:
    d, codes = _ternary(x)
    q = codes.reshape(-1, 2, 4, 32)
    packed = q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)
    return np.concatenate([packed.reshape(-1, 64), half_bytes(d)], axis=1)


def f32_from_q1_0(blocks: U8) -> F32:
    d = half(blocks, 0)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), d, -d)


def f32_to_q1_0(x: F32) -> U8:
    d = np.cumsum(np.abs(x), axis=1)[:, -1:] / np.float32(128)  # summed one by one, as llama.cpp does
    return np.concatenate([half_bytes(d), np.packbits(x >= 0, axis=1, bitorder="little")], axis=1)


_PAIRS = np.array([0, 2, 4, 6], np.uint8)  # where the bits of a byte's four weights begin


def f32_from_q2_0(blocks: U8) -> F32:
    codes = ((blocks[:, 2:, None] >> _PAIRS) & 3).reshape(-1, 64)
    return (codes.astype(np.int8) - np.int8(1)).astype(np.float32) * half(blocks, 0)


def f32_to_q2_0(x: F32) -> U8:
    d, codes = _ternary(x)  # the fourth value, twice the scale, is for files made otherwise
    return np.concatenate([half_bytes(d), np.bitwise_or.reduce(codes.reshape(-1, 16, 4) << _PAIRS, axis=2)], axis=1)
