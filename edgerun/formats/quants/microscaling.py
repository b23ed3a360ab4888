"""MXFP4 and NVFP4: four-bit floats (E2M1) in blocks with a small float of their own as scale.

The table of values is doubled, so scales are halved. Source: the OCP Microscaling specification, ggml-quants.c,
ggml-impl.h; the `gguf` package.
"""

from __future__ import annotations

import numpy as np

from edgerun.formats.quants.legacy import F32, U8, nibbles, pack_nibbles

_SIZES = (0, 1, 2, 3, 4, 6, 8, 12)  # twice the magnitude of an E2M1 code; the sign is the code's highest bit
_E2M1 = np.array([*_SIZES, *(-size for size in _SIZES)], np.int8)
_E4M3_LARGEST, _E4M3_NAN = 0x7E, 0x7F  # 448; the only code that is no number counts as 0


def _e8m0_halves(codes: U8) -> F32:
    """2^(code - 128): half of E8M0's value."""
    e = codes.astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (np.maximum(e, 1) - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


def _e4m3_table() -> F32:
    """(256,): half of the value of each byte as an E4M3 float without a sign (the highest bit is not looked at)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(1 + mantissa / 8, exponent - 7))
    values[_E4M3_NAN] = 0
    return (values / 2).astype(np.float32)


_E4M3_HALVES = _e4m3_table()


def f32_from_mxfp4(blocks: U8) -> F32:
    return _e8m0_halves(blocks[:, :1]) * _E2M1[nibbles(blocks[:, 1:])].astype(np.float32)


def f32_from_nvfp4(blocks: U8) -> F32:
    """Without the factor for the whole tensor, which files keep in a tensor of its own (`.scale`)."""
    values = _E2M1[nibbles(blocks[:, 4:].reshape(-1, 8))].astype(np.float32).reshape(-1, 4, 16)
    return (_E4M3_HALVES[blocks[:, :4]][:, :, None] * values).reshape(-1, 64)


def _nearest(x: F32, scale: F32) -> U8:
    """Codes of x (n, width) in units of scale (n, 1): the nearest, the smaller where two are."""
    size = np.abs(x)
    codes, best = np.zeros(x.shape, np.uint8), size
    for code in range(1, 8):
        error = np.abs(scale * np.float32(_SIZES[code]) - size)
        better = error < best
        codes[better] = code
        best = np.where(better, error, best)
    return np.where((x < 0) & (codes > 0), codes | 8, codes)


def f32_to_mxfp4(x: F32) -> U8:
    peak = np.abs(x).max(axis=1, keepdims=True)
    exponent = np.floor(np.log2(peak, out=np.full_like(peak, -np.inf), where=peak > 0)) - 2 + 127
    e = exponent.clip(0, 254).astype(np.uint8)
    return np.concatenate([e, pack_nibbles(_nearest(x, _e8m0_halves(e)))], axis=1)


def _e4m3(x: F32) -> U8:
    """The nearest code of a number >= 0, halfway the higher one; at most 448. (llama.cpp's is off just below 2^-6, the
    least normal one, and above 256.)"""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = ((bits + np.uint32(1 << 19)) >> np.uint32(20)).astype(np.int64) - (120 << 3)  # exponent, mantissa
    subnormal = (x * np.float32(512) + np.float32(0.5)).clip(0, 8).astype(np.int64)  # 8: the least normal
    return np.where(rounded < 8, subnormal, np.minimum(rounded, _E4M3_LARGEST)).astype(np.uint8)


def f32_to_nvfp4(x: F32) -> U8:
    parts = x.reshape(-1, 16)
    scales = _e4m3(np.abs(parts).max(axis=1, keepdims=True) / np.float32(6))
    codes = _nearest(parts, _E4M3_HALVES[scales])
    packed = codes[:, :8] | (codes[:, 8:] << 4)
    return np.concatenate([scales.reshape(-1, 4), packed.reshape(-1, 32)], axis=1)
