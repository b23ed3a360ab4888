"""Recurrent layers' operations, against the equations written out over a whole text."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.states import StateLayout, StateRows

LAYOUT = StateLayout(3, 5, 4, 6, 7, 128)
ROWS = 9


def _block(rng: np.random.Generator | None = None) -> np.ndarray:
    """A state block that begins on a cache line, (bytes,) u8."""
    memory = np.zeros(LAYOUT.end + 64, np.uint8)
    at = -memory.ctypes.data % 64
    block = memory[at : at + LAYOUT.end]
    if rng is not None:
        block.view(np.float32)[:] = rng.standard_normal(LAYOUT.end // 4)
    return block


def _table(stretches: list[tuple[np.ndarray, np.ndarray, int]]) -> np.ndarray:
    rows = []
    for source, target, count in stretches:
        rows += [(source.ctypes.data, target.ctypes.data)]
        rows += [(target.ctypes.data, target.ctypes.data)] * (count - 1)
    return np.array(rows, np.int64)


@pytest.mark.parametrize("cuts", [[9], [4, 5], [1] * 9])
def test_a_convolution_goes_on_from_what_came_before(cuts):
    rng = np.random.default_rng(1)
    u, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((ROWS, 5), (5, 4), 5))
    before = _block(rng)
    tail = before.view(np.float32)[LAYOUT.conv_at // 4 :][:15].reshape(3, 5)
    seen = np.concatenate([tail, u])
    want = sum(seen[j : j + ROWS] * weight[:, j] for j in range(4)) + bias
    want = want / (1 + np.exp(-want))
    kept, source, out, low = before.copy(), before, np.empty_like(u), 0
    for count in cuts:
        target = _block()
        states = StateRows(_table([(source, target, count)]), LAYOUT)
        rows = slice(low, low + count)
        ReferenceKernels().causal_conv(u[rows], weight, bias, states, out[rows], "silu")
        source, low = target, low + count
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(source.view(np.float32)[LAYOUT.conv_at // 4 :][:15].reshape(3, 5), u[-3:])
    np.testing.assert_array_equal(before, kept)


def test_rows_of_nobody_are_left_alone():
    rng = np.random.default_rng(2)
    u, weight = rng.standard_normal((2, 5)).astype(np.float32), rng.standard_normal((5, 4)).astype(np.float32)
    table = np.concatenate([_table([(_block(), _block(), 1)]), np.zeros((1, 2), np.int64)])
    out = np.full((2, 5), 7, np.float32)
    ReferenceKernels().causal_conv(u, weight, None, StateRows(table, LAYOUT), out, "none")
    assert (out[1] == 7).all()
    np.testing.assert_allclose(out[0], u[0] * weight[:, 3], rtol=1e-6)
    table[0, 0] = 0
    with pytest.raises(UsageError, match="not held"):
        ReferenceKernels().causal_conv(u, weight, None, StateRows(table, LAYOUT), out, "none")


@pytest.mark.parametrize("with_beta", [True, False])
def test_a_scan_follows_its_recurrence(with_beta):
    rng = np.random.default_rng(3)
    q, k = rng.standard_normal((2, ROWS, 2, 6)).astype(np.float32)
    v = rng.standard_normal((ROWS, 4, 7)).astype(np.float32)
    decay, beta = -rng.random((ROWS, 4)).astype(np.float32), rng.random((ROWS, 4)).astype(np.float32)
    before, target = _block(rng), _block()
    out = np.empty_like(v)
    states = StateRows(_table([(before, target, ROWS)]), LAYOUT)
    ReferenceKernels().scan(q, k, v, decay, beta if with_beta else None, states, out)
    for j in range(4):
        m = before.view(np.float32)[LAYOUT.matrices_at // 4 :][j * 42 : j * 42 + 42].reshape(6, 7).astype(np.float64)
        for t in range(ROWS):
            m = m * np.exp(decay[t, j])
            r = (v[t, j] - k[t, j % 2] @ m) * beta[t, j] if with_beta else v[t, j]
            m = m + np.outer(k[t, j % 2], r)
            np.testing.assert_allclose(out[t, j], q[t, j % 2] @ m, rtol=1e-4, atol=1e-4)
