"""The first positions of a sequence, seen whatever the window, by queries of their own."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kernels.far import Far
from edgerun.kernels.kv_formats import KV_FORMATS
from tests.kernels.paged import Paged

HEADS, KV_HEADS, DIM = 6, 2, 32


def _queries(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, HEADS, DIM)).astype(np.float32)


def _paged(end: int, format: str = "f16") -> Paged:
    k, v = np.random.default_rng(end).standard_normal((2, end, KV_HEADS, DIM)).astype(np.float32)
    return Paged(KV_HEADS, DIM, DIM, end, keys=KV_FORMATS[format], values=KV_FORMATS[format]).write(k, v)


def _attend(kernels, paged: Paged, q: np.ndarray, start: int, **more: object) -> np.ndarray:
    out = np.empty((len(q), HEADS, DIM), np.float32)
    kernels.attention(q, [paged.span(start, len(q))], out, scale=0.2, **more)
    return out


@pytest.mark.parametrize("format", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("start", "rows", "window", "first"), [(600, 3, 100, 4), (250, 40, 64, 7), (0, 30, 8, 4)])
def test_like_the_reference(simd, reference, format, start, rows, window, first):
    paged, q = _paged(start + rows, format), _queries(rows, 1)
    far = Far(first, _queries(rows, 2))
    got, want = (_attend(each, paged, q, start, window=window, far=far) for each in (simd, reference))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_who_sees_all_needs_no_far_queries(simd):
    paged, q = _paged(90), _queries(90, 1)
    far = Far(4, np.full((90, HEADS, DIM), np.nan, np.float32))
    got = _attend(simd, paged, q, 0, window=90, far=far)
    np.testing.assert_array_equal(got, np.concatenate([_attend(simd, paged, q[i : i + 1], i) for i in range(90)]))


def test_with_the_same_queries_they_are_positions_like_others(simd):
    """Of 70 positions, the window and the first see all but those between: as if those were not there."""
    rng = np.random.default_rng(5)
    k, v = rng.standard_normal((2, 70, KV_HEADS, DIM)).astype(np.float32)
    kept = [0, 1, 2, 3, *range(50, 70)]
    q = _queries(1, 1)
    whole = Paged(KV_HEADS, DIM, DIM, 70).write(k, v)
    few = Paged(KV_HEADS, DIM, DIM, len(kept)).write(k[kept], v[kept])
    got = _attend(simd, whole, q, 69, window=20, far=Far(4, q))
    np.testing.assert_allclose(got, _attend(simd, few, q, len(kept) - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cuts", [[13, 14, 40], [1, 2, 3, 40], [40]])
def test_a_row_does_not_depend_on_its_company(simd, cuts):
    paged, q, far_q = _paged(340), _queries(40, 1), _queries(40, 2)
    whole = _attend(simd, paged, q, 300, window=90, far=Far(4, far_q))
    low = 0
    for high in cuts:
        part = _attend(simd, paged, q[low:high], 300 + low, window=90, far=Far(4, far_q[low:high]))
        np.testing.assert_array_equal(part, whole[low:high])
        low = high


def test_what_cannot_be_is_refused(simd):
    paged, q = _paged(300), _queries(2, 1)
    for more in (
        {"window": 10, "far": Far(4, q[:1])},
        {"window": 0, "far": Far(4, q)},
        {"window": 10, "far": Far(0, q)},
        {"window": 10, "far": Far(257, q)},
        {"window": 10, "chunked": True, "far": Far(4, q)},
    ):
        with pytest.raises(UsageError, match="cannot be seen apart"):
            _attend(simd, paged, q, 298, **more)
    paged.pages.table[0] = 0
    with pytest.raises(UsageError, match="in no page"):
        _attend(simd, paged, q, 298, window=10, far=Far(4, q))
