"""What models of several streams compute, in plain numpy."""

from __future__ import annotations

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.kernels.stream_checks import check_above, check_correct, check_mix, check_norms
from edgerun.kernels.stream_weights import StreamWeights


def mix_streams(x: F32, shares: StreamWeights, out: F32) -> None:
    """See `interface.Kernels.mix_streams`."""
    check_mix(x, shares, out)
    rows, streams, _ = x.shape
    weights = _weighed(shares).reshape(rows, streams, streams)
    out[:] = x
    for of in range(streams):
        out += weights[:, :, of, None] * x[:, None, of]


def correct_streams(x: F32, result: F32, shares: StreamWeights, out: F32, factors: F32, first: F32) -> None:
    """See `interface.Kernels.correct_streams`."""
    check_correct(x, result, shares, out, factors, first)
    out[:] = x + (_weighed(shares) + np.float32(1))[:, :, None] * (result - x[:, 0])[:, None]
    first[:] = out[:, 0] * factors


def match_norms(x: F32, like: F32) -> None:
    """See `interface.Kernels.match_norms`."""
    check_norms(x, like)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = _length(like)[:, None] / _length(x)
        x *= factors.astype(np.float32)


def above_mean(x: F32, deviations: float) -> None:
    """See `interface.Kernels.above_mean`."""
    check_above(x)
    exact = x.astype(np.float64)
    least = exact.mean(axis=1, keepdims=True) + deviations * exact.std(axis=1, ddof=1, keepdims=True)
    x[:] = np.maximum(x - least.astype(np.float32), np.float32(0))


def _weighed(shares: StreamWeights) -> F32:
    shares.asked[:] = np.tanh(shares.asked * np.float32(shares.scale))
    for row, mine in enumerate(shares.asked):  # row by row: bits shall not depend on how many there are
        shares.weights[row] = shares.coefficients @ mine
    return shares.weights


def _length(x: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    found = np.sqrt(np.square(x, dtype=np.float64).sum(axis=-1, keepdims=True))
    return np.asarray(found)
