"""Superblocks of 256: Q2_K to Q6_K. Source: ggml-quants.c (Kawrakow), the `gguf` package."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.quants.legacy import F32, U8, half, half_bytes

_BITS = np.arange(8, dtype=np.uint8)


def scales_and_mins(packed: U8) -> tuple[U8, U8]:
    """Twelve bytes of Q4_K and Q5_K (n, 12) -> eight 6-bit scales and eight 6-bit mins (n, 8)."""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    mins = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return scales, mins


def _pack_scales_and_mins(scales: U8, mins: U8) -> U8:
    a = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    b = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    c = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return np.concatenate([a, b, c], axis=1)


def _nibble_codes(packed: U8) -> U8:
    """128 bytes -> (n, 8, 32): of each 32 bytes the low nibbles, then the high ones."""
    q = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, 8, 32)


def _pack_nibble_codes(codes: U8) -> U8:
    """(n, 8, 32) -> 128 bytes."""
    pairs = codes.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


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


# -- quantisers: llama.cpp's searches, over all blocks at once -------------------------------------------------------


def _fit_scale_and_min(
    x: F32, top: int, weights: F32, start: float, step: float, tries: int
) -> tuple[F32, F32, NDArray[np.int32]]:
    """Per row of x (n, 32): scale, min (>= 0, to subtract) and codes 0..top that minimise the weighted squared error
    over a grid of scales, each refined by least squares (make_qkx2_quants)."""
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    high = x.max(axis=1, keepdims=True)
    spread = high - low
    flat = spread[:, 0] == 0
    inverse = np.divide(np.float32(top), spread, out=np.zeros_like(spread), where=spread > 0)
    scale = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse > 0)
    codes = np.rint(inverse * (x - low)).clip(0, top)
    best = (weights * np.square(scale * codes + low - x)).sum(axis=1, keepdims=True)
    best_scale, best_low = scale.copy(), low.copy()
    sum_w, sum_x = weights.sum(axis=1, keepdims=True), (weights * x).sum(axis=1, keepdims=True)
    for attempt in range(tries + 1):
        factor = np.divide(
            np.float32(start + step * attempt + top), spread, out=np.zeros_like(spread), where=spread > 0
        )
        tried = np.rint(factor * (x - low)).clip(0, top)
        wl = weights * tried
        sum_l, sum_l2 = wl.sum(axis=1, keepdims=True), (wl * tried).sum(axis=1, keepdims=True)
        sum_xl = (wl * x).sum(axis=1, keepdims=True)
        det = sum_w * sum_l2 - sum_l * sum_l
        with np.errstate(divide="ignore", invalid="ignore"):
            s = (sum_w * sum_xl - sum_x * sum_l) / det
            m = (sum_l2 * sum_x - sum_l * sum_xl) / det
            positive = m > 0
            s = np.where(positive, sum_xl / sum_l2, s)
            m = np.where(positive, np.float32(0), m)
            error = (weights * np.square(s * tried + m - x)).sum(axis=1, keepdims=True)
        better = (det > 0) & (error < best)
        best = np.where(better, error, best)
        best_scale, best_low = np.where(better, s, best_scale), np.where(better, m, best_low)
    best_scale[flat] = 0
    return best_scale, -best_low, codes.astype(np.int32)


def _scale_min_blocks(x: F32, top: int, start: float, tries: int) -> tuple[F32, F32, U8, U8, U8]:
    """d, dmin (n, 1), scales, mins (n, 8) and codes (n, 8, 32) of Q4_K (top 15) or Q5_K (top 31)."""
    parts = x.reshape(-1, 32)
    weights = np.sqrt(np.square(parts).mean(axis=1, keepdims=True)) + np.abs(parts)
    scale, low, _ = _fit_scale_and_min(parts, top, weights.astype(np.float32), start, 0.1, tries)
    scale, low = scale.reshape(-1, 8), low.reshape(-1, 8)
    d = scale.max(axis=1, keepdims=True) / np.float32(63)
    dmin = low.max(axis=1, keepdims=True) / np.float32(63)
    scales = np.rint(np.divide(scale, d, out=np.zeros_like(scale), where=d > 0)).clip(0, 63).astype(np.uint8)
    mins = np.rint(np.divide(low, dmin, out=np.zeros_like(low), where=dmin > 0)).clip(0, 63).astype(np.uint8)
    d, dmin = (v.astype(np.float16).astype(np.float32) for v in (d, dmin))
    step = (d * scales)[:, :, None]
    shifted = x.reshape(-1, 8, 32) + (dmin * mins)[:, :, None]
    codes = np.rint(np.divide(shifted, step, out=np.zeros_like(shifted), where=step > 0)).clip(0, top)
    return d, dmin, scales, mins, codes.astype(np.uint8)


def f32_to_q4_k(x: F32) -> U8:
    d, dmin, scales, mins, codes = _scale_min_blocks(x, 15, -1.0, 20)
    packed = _pack_scales_and_mins(scales, mins)
    return np.concatenate([half_bytes(d), half_bytes(dmin), packed, _pack_nibble_codes(codes)], axis=1)


def f32_to_q5_k(x: F32) -> U8:
    d, dmin, scales, mins, codes = _scale_min_blocks(x, 31, -0.5, 15)
    packed = _pack_scales_and_mins(scales, mins)
    fifth = np.zeros((len(x), 32), np.uint8)
    for sub in range(8):
        fifth |= (codes[:, sub] >> 4) << np.uint8(sub)
    return np.concatenate([half_bytes(d), half_bytes(dmin), packed, fifth, _pack_nibble_codes(codes & 15)], axis=1)


def _fit_signed_scale(x: F32, top: int) -> F32:
    """Per row of x (n, 16): the scale for codes -top..top - 1 with the least error weighted by x^2
    (make_qx_quants)."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    zero = np.abs(peak) < 1e-15
    weights = np.square(x)
    best_scale, best = np.zeros_like(peak), np.full_like(peak, -1)
    for shift in (0, *range(-9, 0), *range(1, 10)):
        inverse = np.divide(-np.float32(top + 0.1 * shift), peak, out=np.zeros_like(peak), where=~zero)
        codes = np.rint(inverse * x).clip(-top, top - 1)
        sum_xl = (weights * x * codes).sum(axis=1, keepdims=True)
        sum_l2 = (weights * codes * codes).sum(axis=1, keepdims=True)
        gain = np.divide(sum_xl * sum_xl, sum_l2, out=np.full_like(peak, -1), where=sum_l2 > 0)
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.divide(sum_xl, sum_l2, out=np.zeros_like(peak), where=sum_l2 > 0)
        best_scale = np.where(better, scale, best_scale)
    return np.where(zero, np.float32(0), best_scale).astype(np.float32)


def f32_to_q6_k(x: F32) -> U8:
    scale = _fit_signed_scale(x.reshape(-1, 16), 32).reshape(-1, 16)
    peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=1, keepdims=True), axis=1)
    zero = np.abs(peak) < 1e-15
    inverse = np.divide(np.float32(-128), peak, out=np.zeros_like(peak), where=~zero)
    d = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)
    d = d.astype(np.float16).astype(np.float32)
    scales = np.rint(inverse * scale).clip(-128, 127).astype(np.int8)
    step = (d * scales.astype(np.float32))[:, :, None]
    parts = x.reshape(-1, 16, 16)
    codes = np.rint(np.divide(parts, step, out=np.zeros_like(parts), where=step != 0)).clip(-32, 31) + 32
    codes = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (codes & 15).reshape(-1, 2, 2, 64)
    nibbles = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
    high = codes >> 4
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return np.concatenate([nibbles, pairs.reshape(-1, 64), scales.view(np.uint8), half_bytes(d)], axis=1)
