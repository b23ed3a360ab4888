"""GGML tensor types, GGUF value kinds: numbers and sizes. Source: the GGUF specification, ggml.h, gguf.h."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np


class GgmlType(IntEnum):
    """A tensor's type number in a GGUF file."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block_size(self) -> int:
        """Weights in one block."""
        return _SIZES[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _SIZES[self][1]

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights (`cols` a multiple of `block_size`)."""
        return cols // self.block_size * self.block_bytes


_SIZES: dict[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip

# Types that no released llama.cpp reads any more, or that it never stores: named in errors only.
UNSUPPORTED_TYPES: dict[int, str] = {
    4: "Q4_2 (or MXFP4 as Ollama wrote it in 2025: pull the model again)",
    5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip


# general.file_type: what a file was made as. llama.h's LLAMA_FTYPE_* without "MOSTLY_"
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
GUESSED_FILE_TYPE = 1024  # added by llama.cpp where the file did not say


class ValueKind(IntEnum):
    """The kind of a metadata value in a GGUF file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_DTYPES: dict[ValueKind, np.dtype[Any]] = {
    ValueKind.UINT8: np.dtype("u1"),
    ValueKind.INT8: np.dtype("i1"),
    ValueKind.UINT16: np.dtype("<u2"),
    ValueKind.INT16: np.dtype("<i2"),
    ValueKind.UINT32: np.dtype("<u4"),
    ValueKind.INT32: np.dtype("<i4"),
    ValueKind.FLOAT32: np.dtype("<f4"),
    ValueKind.BOOL: np.dtype("?"),
    ValueKind.UINT64: np.dtype("<u8"),
    ValueKind.INT64: np.dtype("<i8"),
    ValueKind.FLOAT64: np.dtype("<f8"),
}

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
