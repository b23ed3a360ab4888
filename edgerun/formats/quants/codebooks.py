"""Types whose codes look up a value (IQ4_NL, IQ4_XS, MXFP4) and ternary ones (TQ1_0, TQ2_0).

Source: ggml-quants.c, ggml-common.h; the OCP Microscaling specification for MXFP4.
"""

from __future__ import annotations

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, half, half_bytes, nibbles, round_away

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # twice the value


def f32_from_iq4_nl(blocks: U8) -> F32:
    return half(blocks, 0) * _IQ4[nibbles(blocks[:, 2:])].astype(np.float32)


def f32_from_iq4_xs(blocks: U8) -> F32:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    high = ((high >> (2 * np.arange(8, dtype=np.uint16))) & 3).astype(np.uint8)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scales = (low | (high << 4)).astype(np.int8) - np.int8(32)
    dl = (half(blocks, 0) * scales.astype(np.float32))[:, :, None]
    q = blocks[:, 8:].reshape(-1, 8, 16)
    codes = np.concatenate([q & 15, q >> 4], axis=2)
    return (dl * _IQ4[codes].astype(np.float32)).reshape(-1, 256)


def f32_from_mxfp4(blocks: U8) -> F32:
    e = blocks[:, :1].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (np.maximum(e, 1) - np.uint32(1)) << np.uint32(23))
    scale = bits.astype(np.uint32).view(np.float32)  # 2^(e - 128): half of E8M0's, since the table is doubled
    return scale * _E2M1[nibbles(blocks[:, 1:])].astype(np.float32)


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
