"""K-quants written: llama.cpp's searches without an importance matrix, over all blocks at once.

Source: ggml-quants.c (Kawrakow): the `quantize_row_*_ref` functions. Sums are in another order here, so that a few
codes in a million differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, half_bytes, signed_peak

_TINY = 1e-15  # a group whose weights are all smaller is all zeros


def _pack_scales_and_mins(scales: U8, mins: U8) -> U8:
    a = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    b = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    c = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return np.concatenate([a, b, c], axis=1)


def _pack_nibble_codes(codes: U8) -> U8:
    """(n, 8, 32) -> 128 bytes."""
    pairs = codes.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, 128)


def _pack_two_bit_codes(codes: U8) -> U8:
    """256 codes below four a block, in weight order -> (n, 64): each byte has four weights that lie 32 apart."""
    q = codes.reshape(-1, 2, 4, 32)
    return (q[:, :, 0] | (q[:, :, 1] << 2) | (q[:, :, 2] << 4) | (q[:, :, 3] << 6)).reshape(-1, 64)


def _pack_six_bit_scales(scales: U8) -> U8:
    """(n, 16) of Q3_K -> (n, 12): eight bytes of low nibbles, four of high bit pairs."""
    low = (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4)
    high = (scales >> 4).reshape(-1, 4, 4)
    return np.concatenate([low, high[:, 0] | (high[:, 1] << 2) | (high[:, 2] << 4) | (high[:, 3] << 6)], axis=1)


@dataclass(frozen=True)
class _Search:
    """How a type with scales and mins is searched."""

    group: int  # weights that share a scale and a min
    top: int  # the largest code
    levels: int  # the largest scale and min
    start: float  # of the grid of scales: the code that the greatest weight is first tried at is top + start
    tries: int
    absolute: bool = False  # errors count as they are, not squared


_Q2 = _Search(group=16, top=3, levels=15, start=-0.5, tries=15, absolute=True)
_Q4 = _Search(group=32, top=15, levels=63, start=-1.0, tries=20)
_Q5 = _Search(group=32, top=31, levels=63, start=-0.5, tries=15)


def _fit_scale_and_min(x: F32, weights: F32, search: _Search) -> tuple[F32, F32]:
    """Per row of x (n, group): the scale and the min (>= 0, to subtract), (n, 1) each, with the least weighted error
    of a grid of scales, each refined by least squares (make_qkx2_quants)."""
    top = search.top
    measure = np.abs if search.absolute else np.square
    high = x.max(axis=1, keepdims=True)
    best_low = np.minimum(x.min(axis=1, keepdims=True), 0)
    flat = high == best_low
    inverse = np.divide(np.float32(top), high - best_low, out=np.zeros_like(high), where=~flat)
    best_scale = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse > 0)
    codes = np.rint(inverse * (x - best_low)).clip(0, top)
    best = (weights * measure(best_scale * codes + best_low - x)).sum(axis=1, keepdims=True)
    sum_w, sum_x = weights.sum(axis=1, keepdims=True), (weights * x).sum(axis=1, keepdims=True)
    for attempt in range(search.tries + 1):
        stretched = np.float32(search.start + 0.1 * attempt + top)
        spread = high - best_low  # from the best min so far: a try begins where the one before ended
        factor = np.divide(stretched, spread, out=np.zeros_like(spread), where=spread > 0)
        tried = np.rint(factor * (x - best_low)).clip(0, top)
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
            error = (weights * measure(s * tried + m - x)).sum(axis=1, keepdims=True)
        better = (det > 0) & (error < best)
        best = np.where(better, error, best)
        best_scale, best_low = np.where(better, s, best_scale), np.where(better, m, best_low)
    return np.where(flat, np.float32(0), best_scale), -best_low


def _in_levels(values: F32, levels: int) -> tuple[F32, U8]:
    """(n, groups) -> their common unit (n, 1), as an f16 keeps it, and how many units each is, at most `levels`."""
    unit = values.max(axis=1, keepdims=True) / np.float32(levels)
    counts = np.rint(np.divide(values, unit, out=np.zeros_like(values), where=unit > 0)).clip(0, levels)
    return unit.astype(np.float16).astype(np.float32), counts.astype(np.uint8)


def _scale_min_blocks(x: F32, weights: F32, search: _Search) -> tuple[F32, F32, U8, U8, U8]:
    """d, dmin (n, 1), scales, mins (n, groups) and codes (n, groups, group) of x and its weights (n groups, group)."""
    groups = 256 // search.group
    scale, low = _fit_scale_and_min(x, weights, search)
    d, scales = _in_levels(scale.reshape(-1, groups), search.levels)
    dmin, mins = _in_levels(low.reshape(-1, groups), search.levels)
    step = (d * scales)[:, :, None]
    shifted = x.reshape(-1, groups, search.group) + (dmin * mins)[:, :, None]
    codes = np.rint(np.divide(shifted, step, out=np.zeros_like(shifted), where=step > 0)).clip(0, search.top)
    return d, dmin, scales, mins, codes.astype(np.uint8)


def _size_weights(parts: F32) -> F32:
    """What an error counts in Q4_K and Q5_K: more on large weights, never nothing."""
    return np.sqrt(np.square(parts).mean(axis=1, keepdims=True)) + np.abs(parts)


def f32_to_q2_k(x: F32) -> U8:
    parts = x.reshape(-1, 16)
    d, dmin, scales, mins, codes = _scale_min_blocks(parts, np.abs(parts), _Q2)
    packed = scales | (mins << 4)
    return np.concatenate([packed, _pack_two_bit_codes(codes), half_bytes(d), half_bytes(dmin)], axis=1)


def f32_to_q4_k(x: F32) -> U8:
    parts = x.reshape(-1, 32)
    d, dmin, scales, mins, codes = _scale_min_blocks(parts, _size_weights(parts), _Q4)
    packed = _pack_scales_and_mins(scales, mins)
    return np.concatenate([half_bytes(d), half_bytes(dmin), packed, _pack_nibble_codes(codes)], axis=1)


def f32_to_q5_k(x: F32) -> U8:
    parts = x.reshape(-1, 32)
    d, dmin, scales, mins, codes = _scale_min_blocks(parts, _size_weights(parts), _Q5)
    packed = _pack_scales_and_mins(scales, mins)
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")[:, 0]  # bit j of byte i: weight i of group j
    return np.concatenate([half_bytes(d), half_bytes(dmin), packed, fifth, _pack_nibble_codes(codes & 15)], axis=1)


def _fit_signed_scale_by_turns(x: F32, top: int) -> F32:
    """Per row of x (n, 16): the scale for codes -top..top - 1 with the least error weighted by x^2, found by improving
    one code after the other, five times round (make_q3_quants)."""
    peak = signed_peak(x)
    zero = np.abs(peak) < _TINY
    inverse = np.divide(np.float32(-top), peak, out=np.zeros_like(peak), where=~zero)
    codes = np.rint(inverse * x).clip(-top, top - 1).astype(np.float32)
    weights = np.square(x)
    sum_xl = (weights * x * codes).sum(axis=1)
    sum_l2 = (weights * codes * codes).sum(axis=1)
    for turn in range(5 * x.shape[1]):
        at = turn % x.shape[1]
        w, value, code = weights[:, at], x[:, at], codes[:, at]
        rest_xl, rest_l2 = sum_xl - w * value * code, sum_l2 - w * code * code
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            tried = np.rint(value * rest_l2 / rest_xl).clip(-top, top - 1)
            new_xl, new_l2 = rest_xl + w * value * tried, rest_l2 + w * tried * tried
            gain = new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
        better = (rest_xl > 0) & (tried != code) & (new_l2 > 0) & gain
        codes[:, at] = np.where(better, tried, code)
        sum_xl, sum_l2 = np.where(better, new_xl, sum_xl), np.where(better, new_l2, sum_l2)
    return np.divide(sum_xl, sum_l2, out=np.zeros_like(sum_xl), where=(sum_l2 > 0) & ~zero[:, 0])[:, None]


def f32_to_q3_k(x: F32) -> U8:
    scale = _fit_signed_scale_by_turns(x.reshape(-1, 16), 4).reshape(-1, 16)
    peak = signed_peak(scale)
    inverse = np.divide(np.float32(-32), peak, out=np.zeros_like(peak), where=peak != 0)
    d = np.divide(np.float32(1), inverse, out=np.zeros_like(inverse), where=inverse != 0)
    d = d.astype(np.float16).astype(np.float32)
    scales = np.rint(inverse * scale).clip(-32, 31)
    step = (d * scales)[:, :, None]
    parts = x.reshape(-1, 16, 16)
    codes = np.rint(np.divide(parts, step, out=np.zeros_like(parts), where=step != 0)).clip(-4, 3) + 4
    codes = codes.astype(np.uint8)
    third = np.packbits(codes.reshape(-1, 8, 32) >> 2, axis=1, bitorder="little")[:, 0]  # bit j of byte i: 32 j + i
    return np.concatenate(
        [third, _pack_two_bit_codes(codes & 3), _pack_six_bit_scales((scales + 32).astype(np.uint8)), half_bytes(d)],
        axis=1,
    )


def _fit_signed_scale(x: F32, top: int) -> F32:
    """Per row of x (n, 16): the scale for codes -top..top - 1 with the least error weighted by x^2
    (make_qx_quants)."""
    peak = signed_peak(x)
    zero = np.abs(peak) < _TINY
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
    peak = signed_peak(scale)
    zero = np.abs(peak) < _TINY
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
    return np.concatenate([nibbles, _pack_two_bit_codes(codes >> 4), scales.view(np.uint8), half_bytes(d)], axis=1)
