"""Random valid weight blocks of every type, for kernel tests."""

from __future__ import annotations

import numpy as np

from edgerun.formats.gguf.types import GgmlType

_SCALES_AT = {  # byte offsets of the f16 scales in a block
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
    GgmlType.IQ4_NL: (0,),
    GgmlType.IQ4_XS: (0,),
    **dict.fromkeys((GgmlType.IQ1_S, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S), (0,)),
    **dict.fromkeys((GgmlType.IQ3_XXS, GgmlType.IQ3_S, GgmlType.Q1_0, GgmlType.Q2_0), (0,)),
    GgmlType.TQ1_0: (52,),
    GgmlType.TQ2_0: (64,),
}


def random_blocks(rng: np.random.Generator, rows: int, cols: int, type: GgmlType) -> np.ndarray:
    """(rows, row_bytes) u8: every bit pattern of the codes, sane scales."""
    if type in (GgmlType.F32, GgmlType.F16, GgmlType.BF16):
        x = rng.standard_normal((rows, cols)).astype(np.float32)
        if type == GgmlType.F32:
            return x.view(np.uint8)
        if type == GgmlType.F16:
            return x.astype(np.float16).view(np.uint8)
        return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    blocks = rows * cols // type.block_size
    raw = rng.integers(0, 256, (blocks, type.block_bytes), dtype=np.uint8)
    if type == GgmlType.MXFP4:
        raw[:, 0] = rng.integers(118, 130, blocks)
    if type == GgmlType.NVFP4:
        raw[:, :4] = rng.integers(0, 0x30, (blocks, 4))
    if type == GgmlType.IQ1_M:  # its f16 scale stands in the top nibbles of four words
        bits = (rng.random(blocks) * 0.02 + 0.005).astype(np.float16).view(np.uint16)
        for word in range(4):
            nibble = (bits >> np.uint16(4 * word)) & np.uint16(15)
            raw[:, 49 + 2 * word] = (raw[:, 49 + 2 * word] & 15) | (nibble << np.uint16(4)).astype(np.uint8)
    for at in _SCALES_AT.get(type, ()):
        raw[:, at : at + 2] = (rng.random(blocks) * 0.02 + 0.005).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, type.row_bytes(cols))


def filled_blocks(rng: np.random.Generator, rows: int, cols: int, type: GgmlType, value: int) -> np.ndarray:
    """As `random_blocks`, but every byte that is no float scale is `value`."""
    raw = random_blocks(rng, rows, cols, type).reshape(-1, type.block_bytes)
    kept = {place for at in _SCALES_AT.get(type, ()) for place in (at, at + 1)}
    kept |= {GgmlType.MXFP4: {0}, GgmlType.NVFP4: set(range(4)), GgmlType.IQ1_M: set(range(48, 56))}.get(type, set())
    raw[:, [place for place in range(type.block_bytes) if place not in kept]] = value
    return raw.reshape(rows, type.row_bytes(cols))
