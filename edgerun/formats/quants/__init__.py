"""Quantisation blocks to f32 and back, in numpy: the reference for every kernel, equal to the `gguf` package bit for
bit, and to llama.cpp where the package lacks a type. What the package does not make is made by llama.cpp's searches;
types below three bits that want an importance matrix are read only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError, UnsupportedError, UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import codebooks, iquants, kquants, ksearch, legacy, microscaling, ternary

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

__all__ = ["DEQUANTIZERS", "QUANTIZERS", "dequantize", "quantize"]

DEQUANTIZERS: dict[GgmlType, Callable[[U8], F32]] = {
    GgmlType.F32: legacy.f32_from_f32,
    GgmlType.F16: legacy.f32_from_f16,
    GgmlType.BF16: legacy.f32_from_bf16,
    GgmlType.Q4_0: legacy.f32_from_q4_0,
    GgmlType.Q4_1: legacy.f32_from_q4_1,
    GgmlType.Q5_0: legacy.f32_from_q5_0,
    GgmlType.Q5_1: legacy.f32_from_q5_1,
    GgmlType.Q8_0: legacy.f32_from_q8_0,
    GgmlType.Q2_K: kquants.f32_from_q2_k,
    GgmlType.Q3_K: kquants.f32_from_q3_k,
    GgmlType.Q4_K: kquants.f32_from_q4_k,
    GgmlType.Q5_K: kquants.f32_from_q5_k,
    GgmlType.Q6_K: kquants.f32_from_q6_k,
    GgmlType.IQ1_S: iquants.f32_from_iq1_s,
    GgmlType.IQ1_M: iquants.f32_from_iq1_m,
    GgmlType.IQ2_XXS: iquants.f32_from_iq2_xxs,
    GgmlType.IQ2_XS: iquants.f32_from_iq2_xs,
    GgmlType.IQ2_S: iquants.f32_from_iq2_s,
    GgmlType.IQ3_XXS: iquants.f32_from_iq3_xxs,
    GgmlType.IQ3_S: iquants.f32_from_iq3_s,
    GgmlType.IQ4_NL: codebooks.f32_from_iq4_nl,
    GgmlType.IQ4_XS: codebooks.f32_from_iq4_xs,
    GgmlType.MXFP4: microscaling.f32_from_mxfp4,
    GgmlType.NVFP4: microscaling.f32_from_nvfp4,
    GgmlType.TQ1_0: ternary.f32_from_tq1_0,
    GgmlType.TQ2_0: ternary.f32_from_tq2_0,
    GgmlType.Q1_0: ternary.f32_from_q1_0,
    GgmlType.Q2_0: ternary.f32_from_q2_0,
}
QUANTIZERS: dict[GgmlType, Callable[[F32], U8]] = {
    GgmlType.F32: legacy.f32_to_f32,
    GgmlType.F16: legacy.f32_to_f16,
    GgmlType.BF16: legacy.f32_to_bf16,
    GgmlType.Q4_0: legacy.f32_to_q4_0,
    GgmlType.Q4_1: legacy.f32_to_q4_1,
    GgmlType.Q5_0: legacy.f32_to_q5_0,
    GgmlType.Q5_1: legacy.f32_to_q5_1,
    GgmlType.Q8_0: legacy.f32_to_q8_0,
    GgmlType.Q2_K: ksearch.f32_to_q2_k,
    GgmlType.Q3_K: ksearch.f32_to_q3_k,
    GgmlType.Q4_K: ksearch.f32_to_q4_k,
    GgmlType.Q5_K: ksearch.f32_to_q5_k,
    GgmlType.Q6_K: ksearch.f32_to_q6_k,
    GgmlType.IQ4_NL: codebooks.f32_to_iq4_nl,
    GgmlType.IQ4_XS: codebooks.f32_to_iq4_xs,
    GgmlType.MXFP4: microscaling.f32_to_mxfp4,
    GgmlType.NVFP4: microscaling.f32_to_nvfp4,
    GgmlType.TQ1_0: ternary.f32_to_tq1_0,
    GgmlType.TQ2_0: ternary.f32_to_tq2_0,
    GgmlType.Q1_0: ternary.f32_to_q1_0,
    GgmlType.Q2_0: ternary.f32_to_q2_0,
}
_WEIGHTS_AT_ONCE = 1 << 20  # bounds the scratch memory


def dequantize(raw: U8, type: GgmlType) -> F32:
    """Rows (..., row_bytes) u8 -> (..., cols) f32. Raises UnsupportedError, FormatError for torn rows."""
    if type not in DEQUANTIZERS:
        raise UnsupportedError(f"{GgmlType(type).name} tensors hold no weights that edgerun reads")
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % type.block_bytes:
        raise FormatError(
            f"{raw.dtype} rows of {raw.shape[-1] if raw.ndim else 0} are not whole {type.name} blocks "
            f"of {type.block_bytes} bytes"
        )
    blocks = np.ascontiguousarray(raw).reshape(-1, type.block_bytes)
    out = np.empty((len(blocks), type.block_size), np.float32)
    step = max(1, _WEIGHTS_AT_ONCE // type.block_size)
    with np.errstate(invalid="ignore", over="ignore"):  # hostile scales may be anything
        for low in range(0, len(blocks), step):
            out[low : low + step] = DEQUANTIZERS[type](blocks[low : low + step])
    return out.reshape(*raw.shape[:-1], raw.shape[-1] // type.block_bytes * type.block_size)


def quantize(x: F32, type: GgmlType) -> U8:
    """Rows (..., cols) f32 -> (..., row_bytes) u8. Raises UsageError for a type that is not written, columns that
    are not whole blocks, or values that are not finite."""
    if type not in QUANTIZERS:
        names = ", ".join(each.name for each in QUANTIZERS)
        raise UsageError(f"cannot quantise to {GgmlType(type).name}; choose one of {names}")
    if x.ndim == 0 or x.shape[-1] % type.block_size:
        cols = x.shape[-1] if x.ndim else 0
        raise UsageError(f"{cols} columns are not whole {type.name} blocks of {type.block_size}; use F16 or Q8_0")
    if not np.isfinite(x).all():
        raise UsageError(f"cannot quantise to {type.name}: some weights are not finite")
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, type.block_size)
    out = np.empty((len(blocks), type.block_bytes), np.uint8)
    step = max(1, _WEIGHTS_AT_ONCE // type.block_size)
    for low in range(0, len(blocks), step):
        out[low : low + step] = QUANTIZERS[type](blocks[low : low + step])
    return out.reshape(*x.shape[:-1], type.row_bytes(x.shape[-1]))
