"""Print what llama.cpp's quantisers and dequantisers make of the samples of tests/formats_quants.

    python -m tools.record_quants PATH/libggml-base.so

(in llama-cpp-python: llama_cpp/lib). What it prints stands in tests/formats_quants.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from pathlib import Path

import numpy as np

from edgerun.formats.gguf import GgmlType
from edgerun.formats.quants import QUANTIZERS, dequantize
from tests.formats_quants.samples import mean_error, sane_blocks, weights

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """ggml.h: struct ggml_type_traits."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


def main(library: Path) -> None:
    """Digests of dequantised blocks, then errors of quantised samples."""
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    for type in (GgmlType.Q1_0, GgmlType.Q2_0):
        raw = sane_blocks(type)
        out = np.empty(len(raw) * type.block_size, np.float32)
        ggml.ggml_get_type_traits(int(type)).contents.to_float(raw.ctypes.data, out.ctypes.data, out.size)
        print(type.name, hashlib.sha256(out.tobytes()).hexdigest())
    for type in QUANTIZERS:
        if type.block_size == 1:
            continue
        errors = []
        for kind in ("normal", "laplace", "zeros", "positive"):
            x = weights(kind)
            raw = np.zeros((len(x), type.row_bytes(x.shape[1])), np.uint8)
            rows, cols = (ctypes.c_int64(size) for size in x.shape)
            pointers = (ctypes.c_void_p(array.ctypes.data) for array in (x, raw))
            ggml.ggml_quantize_chunk(int(type), *pointers, ctypes.c_int64(0), rows, cols, None)
            errors.append(f"{mean_error(x, dequantize(raw, type)):.6g}")
        print(f'    "{type.name}": ({", ".join(errors)}),')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
