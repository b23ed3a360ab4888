"""What operations on several streams are given must fit each other: compiled kernels trust shapes and strides."""

from __future__ import annotations

from edgerun.errors import UsageError
from edgerun.kernels.interface import F32
from edgerun.kernels.stream_weights import StreamWeights


def check_mix(x: F32, by: StreamWeights, out: F32) -> None:
    """UsageError unless all fit each other."""
    if x.ndim == 3:
        rows, streams, _ = x.shape
        shapes = (rows, streams), (streams * streams, streams), (rows, streams * streams), x.shape
        arrays = by.asked, by.coefficients, by.weights, out
        if all(each.shape == shape for each, shape in zip(arrays, shapes, strict=True)) and _whole(x, *arrays):
            return
    raise UsageError(f"cannot mix streams {x.shape} by {by.asked.shape} and {by.coefficients.shape} into {out.shape}")


def check_correct(x: F32, result: F32, by: StreamWeights, out: F32, factors: F32, first: F32) -> None:
    """UsageError unless all fit each other."""
    if x.ndim == 3:
        rows, streams, cols = x.shape
        small = (rows, streams), (streams, streams), (rows, streams)
        shapes = (rows, cols), *small, x.shape, (cols,), (rows, cols)
        arrays = result, by.asked, by.coefficients, by.weights, out, factors, first
        if all(each.shape == shape for each, shape in zip(arrays, shapes, strict=True)) and _whole(x, *arrays):
            return
    raise UsageError(f"cannot correct streams {x.shape} by {result.shape} and {by.asked.shape} into {out.shape}")


def check_norms(x: F32, like: F32) -> None:
    """UsageError unless x (T, n, cols) are rows of those of like (T, cols), each in one piece."""
    if x.ndim != 3 or like.shape != (x.shape[0], x.shape[2]) or x.strides[2] != 4 or like.strides[1] != 4:
        raise UsageError(f"rows {x.shape} cannot be made as long as {like.shape}")


def check_above(x: F32) -> None:
    """UsageError unless x (rows, cols) has deviations."""
    if x.ndim != 2 or x.shape[1] < 2 or not x.flags.c_contiguous:
        raise UsageError(f"rows of {x.shape} have no deviation")


def _whole(*arrays: F32) -> bool:
    return all(each.flags.c_contiguous for each in arrays)
