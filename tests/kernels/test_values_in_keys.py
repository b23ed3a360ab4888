"""Attention in which a position's value is the last dimensions of its key, against the same with values kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.kernels.kv_formats import F16, IN_KEYS
from tests.kernels.paged import Paged

# heads, dimensions of keys, of values, first position, rows
CASES = [(4, 24, 16, 0, 40), (5, 72, 64, 300, 3), (20, 40, 37, 500, 33), (1, 16, 9, 255, 1), (3, 80, 64, 63, 70)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_as_values_of_their_own(simd, case):
    heads, dim, dim_v, start, rows = case
    rng = np.random.default_rng(sum(case))
    end = start + rows
    k = rng.standard_normal((end, 1, dim)).astype(np.float32)
    v = np.ascontiguousarray(k[..., dim - dim_v :])
    q = rng.standard_normal((rows, heads, dim)).astype(np.float32)
    found = []
    for values in (F16, IN_KEYS):
        paged = Paged(1, dim, dim_v, end, values=values)
        for low, high in ((0, start), (start, end)):
            if low < high:
                simd.kv_write([paged.span(low, high - low)], k[low:high], v[low:high])
        out = np.empty((rows, heads, dim_v), np.float32)
        simd.attention(q, [paged.span(start, rows)], out, scale=dim**-0.5)
        alone = np.empty((1, heads, dim_v), np.float32)
        simd.attention(q[-1:], [paged.span(end - 1, 1)], alone, scale=dim**-0.5)
        np.testing.assert_array_equal(alone[0], out[-1])
        found.append(out)
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0], found[1])


def test_like_the_reference(simd, reference):
    rng = np.random.default_rng(3)
    k, q = rng.standard_normal((300, 1, 40)).astype(np.float32), rng.standard_normal((9, 6, 40)).astype(np.float32)
    results = np.empty((2, 9, 6, 32), np.float32)
    for kernels, out in zip((simd, reference), results, strict=True):
        paged = Paged(1, 40, 32, 300, values=IN_KEYS)
        kernels.kv_write([paged.span(0, 300)], k, np.ascontiguousarray(k[..., 8:]))
        kernels.attention(q, [paged.span(291, 9)], out, scale=0.2)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=5e-6)


def test_nothing_is_kept_of_values():
    assert Paged(1, 576, 512, 256, values=IN_KEYS).pages.layout.end == 64 + 256 * 576 * 2
