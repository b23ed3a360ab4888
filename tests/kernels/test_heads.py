"""Products in which every head has a matrix of its own, and rows that are copied from place to place."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import dequantize
from tests.kernels.blocks import random_blocks

TYPES = (GgmlType.F32, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q5_0, GgmlType.Q4_K)


def _case(type: GgmlType, tokens: int, heads: int, rows: int, cols: int):
    rng = np.random.default_rng(tokens + rows)
    raw = random_blocks(rng, heads * rows, cols, type)
    x = rng.standard_normal((tokens * heads, cols)).astype(np.float32)
    weights = dequantize(raw, type).astype(np.float32).reshape(heads, rows, cols)
    want = np.einsum("thk,hnk->thn", x.reshape(tokens, heads, cols), weights)
    return raw, x, want


def _run(kernels, raw, type, x, tokens, heads, rows, spare=0):
    """Into an array whose rows are `spare` columns further apart than they are long."""
    out = np.full((tokens, heads, rows + spare), np.nan, np.float32)
    kernels.matmul_heads(kernels.pack(raw, type, x.shape[1]), kernels.activations(x), out[..., spare:])
    assert np.isnan(out[..., :spare]).all()
    return out[..., spare:]


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("rows", [32, 24, 5], ids="{} rows".format)
def test_every_head_has_its_own_matrix(simd, type, rows):
    tokens, heads, cols = 11, 3, 256
    raw, x, want = _case(type, tokens, heads, rows, cols)
    got = _run(simd, raw, type, x, tokens, heads, rows, spare=7)
    most = 2e-2 if type.block_size > 1 else 1e-5
    assert np.linalg.norm(got - want) <= most * np.linalg.norm(want)


@pytest.mark.parametrize("rows", [32, 24], ids="{} rows".format)
def test_a_tokens_heads_do_not_depend_on_its_company(simd, rows):
    tokens, heads, cols = 150, 2, 256  # more rows than a product takes at once
    raw, x, _ = _case(GgmlType.Q4_K, tokens, heads, rows, cols)
    whole = _run(simd, raw, GgmlType.Q4_K, x, tokens, heads, rows)
    for token in (0, 7, 149):
        alone = _run(simd, raw, GgmlType.Q4_K, x[2 * token : 2 * token + 2].copy(), 1, heads, rows)
        np.testing.assert_array_equal(alone[0], whole[token])


def test_heads_that_do_not_fit_are_refused(simd):
    raw, x, _ = _case(GgmlType.F32, 4, 2, 16, 32)
    w, rows = simd.pack(raw, GgmlType.F32, 32), simd.activations(x)
    for shape in ((4, 2, 15), (3, 2, 16), (4, 4, 8), (4, 32), (0, 2, 16)):
        with pytest.raises(UsageError, match="cannot multiply heads"):
            simd.matmul_heads(w, rows, np.empty(shape, np.float32))


def test_rows_are_copied_from_any_distance_to_any(simd):
    x, out = np.arange(7 * 40, dtype=np.float32).reshape(7, 40), np.zeros((7, 50), np.float32)
    simd.copy(x[:, 3:30], out[:, 11:38])
    np.testing.assert_array_equal(out[:, 11:38], x[:, 3:30])
    assert not out[:, :11].any() and not out[:, 38:].any()
    with pytest.raises(UsageError, match="cannot copy"):
        simd.copy(x, out)
    with pytest.raises(UsageError, match="cannot copy"):
        simd.copy(x[:, ::2], out[:, :20])
