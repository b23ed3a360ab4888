"""IQ4_NL and IQ4_XS: four-bit codes that look up a value, closer together near nought.

Source: ggml-quants.c, ggml-common.h (Kawrakow).
"""

from __future__ import annotations

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, half, half_bytes, nibbles, pack_nibbles, signed_peak

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_BIN_OF = np.searchsorted((_IQ4[1:].astype(np.int16) + _IQ4[:-1]), np.arange(-256, 256), side="right").astype(np.uint8)
_TINY = 1e-15  # a group whose weights are all smaller is all zeros


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


def _nearest(x: F32) -> U8:
    """The code whose value is nearest; halfway the higher one. Borders between codes lie at whole halves."""
    return _BIN_OF[np.floor(2 * x).clip(-256, 255).astype(np.int16) + 256]


def _fit_scale(x: F32) -> F32:
    """Per row of x (n, 32): the scale (n, 1) with the least error weighted by x^2, of fifteen for each of which the
    greatest weight is near the first code (quantize_row_iq4_nl_impl)."""
    peak = signed_peak(x)
    zero = np.abs(peak) < _TINY
    weights = np.square(x)
    best_scale, best = np.zeros_like(peak), np.full_like(peak, -1)
    first = np.float32(_IQ4[0])
    for shift in (None, *range(-7, 8)):
        target = -first if shift is None else first + np.float32(shift)
        values = _IQ4[_nearest(np.divide(target, peak, out=np.zeros_like(peak), where=~zero) * x)].astype(np.float32)
        sum_xq = (weights * values * x).sum(axis=1, keepdims=True)
        sum_q2 = (weights * values * values).sum(axis=1, keepdims=True)
        scale = np.divide(sum_xq, sum_q2, out=np.zeros_like(peak), where=sum_q2 > 0)
        better = scale * sum_xq > best
        best, best_scale = np.where(better, scale * sum_xq, best), np.where(better, scale, best_scale)
    return np.where(zero, np.float32(0), best_scale)


def _inverse(scale: F32) -> F32:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def f32_to_iq4_nl(x: F32) -> U8:
    scale = _fit_scale(x)
    return np.concatenate([half_bytes(scale), pack_nibbles(_nearest(_inverse(scale) * x))], axis=1)


def f32_to_iq4_xs(x: F32) -> U8:
    parts = x.reshape(-1, 8, 32)
    scale = _fit_scale(x.reshape(-1, 32)).reshape(-1, 8)
    d = signed_peak(scale) / np.float32(-32)
    levels = np.rint(_inverse(d) * scale).clip(-32, 31)
    codes = _nearest(_inverse(d * levels)[:, :, None] * parts)
    packed = pack_nibbles(codes.reshape(-1, 32)).reshape(-1, 128)
    bits = (levels + 32).astype(np.uint8)
    low = (bits[:, 0::2] & 15) | ((bits[:, 1::2] & 15) << 4)
    high = np.bitwise_or.reduce((bits >> 4).astype(np.uint16) << (2 * np.arange(8, dtype=np.uint16)), axis=1)
    return np.concatenate([half_bytes(d), high[:, None].view(np.uint8), low, packed], axis=1)
