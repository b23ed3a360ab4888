"""What quantisers and dequantisers are compared on with llama.cpp: the same here and in tools/record_quants.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.gguf import GgmlType

F32 = NDArray[np.float32]


def weights(kind: str) -> F32:
    """(128, 2048) f32: as a layer has them, with a few large ones, with many zeros, or all above zero."""
    rng = np.random.default_rng(5)
    shape = (128, 2048)
    drawn = {
        "normal": lambda: 0.02 * rng.standard_normal(shape),
        "laplace": lambda: rng.laplace(0, 0.1, shape),
        "zeros": lambda: np.where(rng.random(shape) < 0.3, 0, rng.standard_normal(shape)),
        "positive": lambda: rng.random(shape),
    }
    return drawn[kind]().astype(np.float32)


def sane_blocks(type: GgmlType) -> NDArray[np.uint8]:
    """(1000, block_bytes): blocks that begin with an f16, which takes every kind of number."""
    rng = np.random.default_rng(1000 + int(type))
    raw = rng.integers(0, 256, (1000, type.block_bytes), dtype=np.uint8)
    raw[:, :2] = rng.integers(0, 0x7C00, 1000).astype(np.uint16).view(np.uint8).reshape(-1, 2)
    return raw


def mean_error(x: F32, back: F32) -> float:
    """Mean squared error, in units of the mean square of x."""
    return float(np.square(back.astype(np.float64) - x).mean() / np.square(x.astype(np.float64)).mean())
