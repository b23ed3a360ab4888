"""Operations on several streams, and gates that let only what stands out through: by hand, compiled, alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.interface import Kernels
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels
from edgerun.kernels.stream_weights import StreamWeights
from tests.kernels.isas import KERNELS_DIR, LANES

ROWS, STREAMS, COLS = 5, 3, 37


@pytest.fixture(scope="module", params=["reference", *LANES], ids=lambda each: getattr(each, "name", each))
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    if request.param == "reference":
        yield ReferenceKernels()
        return
    made = SimdKernels(request.param, KernelCache(request.param, KERNELS_DIR), 2)
    yield made
    made.close()


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def shares(asked: np.ndarray, coefficients: np.ndarray, scale: float) -> StreamWeights:
    return StreamWeights(asked.copy(), coefficients, scale, np.empty((len(asked), len(coefficients)), np.float32))


def compute(kernels: Kernels, rows: slice) -> list[np.ndarray]:
    """What every operation gives for some rows of the same numbers."""
    rng = np.random.default_rng(0)
    x, result, asked = floats(rng, ROWS, STREAMS, COLS), floats(rng, ROWS, COLS), floats(rng, ROWS, STREAMS)
    mixing, news = floats(rng, STREAMS**2, STREAMS), floats(rng, STREAMS, STREAMS)
    factors, wide, gates = floats(rng, COLS), floats(rng, ROWS, 4 * COLS), floats(rng, ROWS, COLS) + 1
    x, result, asked, wide, gates = (each[rows].copy() for each in (x, result, asked, wide, gates))
    mixed, corrected, first = np.empty_like(x), np.empty_like(x), np.empty_like(result)
    kernels.mix_streams(x, shares(asked, mixing, 0.5), mixed)
    kernels.correct_streams(x, result, shares(asked, news, 0.5), corrected, factors, first)
    n = len(x)
    others = wide[:, COLS : 3 * COLS].reshape(n, 2, COLS) if n == 1 else wide.reshape(n, 4, COLS)[:, 1:3]
    kernels.match_norms(others, wide[:, :COLS])
    kernels.add(wide[:, 3 * COLS :], result)
    kernels.above_mean(gates, 0.4)
    return [mixed, corrected, first, wide, gates]


def test_by_hand(kernels):
    rng = np.random.default_rng(0)
    x, result, asked = floats(rng, ROWS, STREAMS, COLS), floats(rng, ROWS, COLS), floats(rng, ROWS, STREAMS)
    mixing, news = floats(rng, STREAMS**2, STREAMS), floats(rng, STREAMS, STREAMS)
    factors, wide, gates = floats(rng, COLS), floats(rng, ROWS, 4 * COLS), floats(rng, ROWS, COLS) + 1
    weights = (np.tanh(asked / 2) @ mixing.T).reshape(ROWS, STREAMS, STREAMS)
    mixed = x + weights @ x
    shares = 1 + np.tanh(asked / 2) @ news.T
    corrected = x + shares[:, :, None] * (result - x[:, 0])[:, None]
    matched = wide.reshape(ROWS, 4, COLS).copy()
    lengths = np.linalg.norm(matched, axis=2, keepdims=True)
    matched[:, 1:3] *= lengths[:, :1] / lengths[:, 1:3]
    matched[:, 3] += result
    cut = np.maximum(gates - gates.mean(1, keepdims=True) - 0.4 * gates.std(1, ddof=1, keepdims=True), 0)
    assert 0 < np.count_nonzero(cut) < cut.size
    want = [mixed, corrected, corrected[:, 0] * factors, matched.reshape(ROWS, -1), cut]
    for got, wanted in zip(compute(kernels, slice(0, ROWS)), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-5)


def test_a_row_alone(kernels):
    whole = compute(kernels, slice(0, ROWS))
    for row in range(ROWS):
        for got, one in zip(whole, compute(kernels, slice(row, row + 1)), strict=True):
            assert got[row : row + 1].tobytes() == one.tobytes()


def test_what_does_not_fit_is_refused(kernels):
    x, row, asked = np.zeros((2, 3, 8), np.float32), np.zeros((2, 8), np.float32), np.zeros((2, 3), np.float32)
    nine, three = np.zeros((9, 3), np.float32), np.zeros((3, 3), np.float32)
    with pytest.raises(UsageError, match="cannot mix"):
        kernels.mix_streams(x, StreamWeights(asked, three, 1.0, np.zeros((2, 9), np.float32)), x.copy())
    with pytest.raises(UsageError, match="cannot mix"):
        kernels.mix_streams(x, StreamWeights(asked, nine, 1.0, np.zeros((2, 3), np.float32)), x.copy())
    with pytest.raises(UsageError, match="cannot correct"):
        kernels.correct_streams(x, row, shares(asked, three, 1.0), x.copy(), row[0, :7], row.copy())
    with pytest.raises(UsageError, match="as long as"):
        kernels.match_norms(x, row[:, :7])
    with pytest.raises(UsageError, match="no deviation"):
        kernels.above_mean(row[:, :1].copy(), 1.0)
