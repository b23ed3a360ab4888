"""Rotation of the residual stream: outliers of one channel are spread over many, so that a coarse grid fits all.

With R orthonormal, RMSNorm commutes with x -> x R once its weight has moved into the matrices that follow; those then
read W diag(norm) R, and what writes to the stream writes R^T W. Nothing changes but the rounding (QuaRot, Ashkboos et
al. 2024, the offline half). R is block-diagonal, of Hadamard blocks as large as a power of two divides d_model.
"""

from __future__ import annotations

import numpy as np

from edgerun.errors import UnsupportedError
from edgerun.kernels.interface import F32
from edgerun.models import ModelSpec


def check_rotatable(spec: ModelSpec) -> None:
    """UnsupportedError for models in which something else than a norm and a matrix reads or writes the stream."""
    if spec.family.post_norms:
        raise UnsupportedError(f"{spec.architecture} norms what it adds to the stream, so the stream cannot be rotated")
    if spec.n_experts:
        raise UnsupportedError("experts on the CPU read the stream as it is: a mixture cannot be rotated")


def rotate(x: F32, axis: int = -1) -> F32:
    """x R along an axis, a new array. Its own inverse."""
    n = x.shape[axis]
    block = n & -n
    moved = np.moveaxis(x, axis, -1)
    out = np.ascontiguousarray(moved, np.float32).reshape(*moved.shape[:-1], n // block, block)
    width = 1
    while width < block:
        pairs = out.reshape(*out.shape[:-1], block // (2 * width), 2, width)
        out = np.concatenate([pairs[..., :1, :] + pairs[..., 1:, :], pairs[..., :1, :] - pairs[..., 1:, :]], axis=-2)
        out = out.reshape(*moved.shape[:-1], n // block, block)
        width *= 2
    out = (out * np.float32(block**-0.5)).reshape(moved.shape)
    return np.ascontiguousarray(np.moveaxis(out, -1, axis))
