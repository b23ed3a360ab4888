"""Products of every format, shape and implementation against dequantised weights in float64."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import DEQUANTIZERS, dequantize
from edgerun.kernels import layout
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.formats.activations import FORMS
from edgerun.kernels.interface import Expert
from tests.kernels.blocks import random_blocks

NATIVE = list(FORMATS)
QUANTISED = [type for type, format in FORMATS.items() if format.form != "f32"]
OTHERS = [type for type in DEQUANTIZERS if type not in FORMATS]


def as_quantised(x: np.ndarray, type: GgmlType) -> np.ndarray:
    """What int8 activations keep of x; float formats keep all."""
    if type not in QUANTISED:
        return x.astype(np.float64)
    blocks = x.reshape(x.shape[0], -1, FORMS[FORMATS[type].form][0])
    top = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return (np.rint(blocks * inverse) * (top / np.float32(127)).astype(np.float64)).reshape(x.shape)


@pytest.mark.parametrize("type", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [64, 37])
@pytest.mark.parametrize("tokens", [1, 2, 4, 7, 129, 130])
def test_native_formats(simd, type, rows, tokens):
    rng = np.random.default_rng(int(type) * 1000 + rows + tokens)
    cols = 512 if type in QUANTISED else 100
    raw = random_blocks(rng, rows, cols, type)
    w = simd.pack(raw, type, cols)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    out = np.full((tokens, rows), np.nan, np.float32)
    simd.matmul(w, simd.activations(x), out)
    dense = dequantize(raw, type).astype(np.float64)
    want = as_quantised(x, type) @ dense.T
    assert np.abs(out - want).max() <= 2e-6 * np.abs(want).max()

    alone = np.empty((1, rows), np.float32)
    simd.matmul(w, simd.activations(x[-1:].copy()), alone)
    assert np.array_equal(alone[0], out[-1]), "a row must not depend on its neighbours"

    twice = out.copy()
    simd.matmul(w, simd.activations(x), twice, add=True)
    np.testing.assert_allclose(twice, 2 * out, rtol=1e-5, atol=1e-5 * np.abs(out).max())


@pytest.mark.parametrize("type", OTHERS, ids=lambda t: t.name)
def test_every_other_format_runs(simd, type):
    rng = np.random.default_rng(int(type))
    raw = random_blocks(rng, 24, 512, type)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    out = np.empty((3, 24), np.float32)
    simd.matmul(simd.pack(raw, type, 512), simd.activations(x), out)
    want = x.astype(np.float64) @ dequantize(raw, type).astype(np.float64).T
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("eights", [False, True])
@pytest.mark.parametrize(
    "type",
    [
        *(GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q6_K, GgmlType.Q5_K, GgmlType.Q4_K),
        *(GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S, GgmlType.IQ3_XXS, GgmlType.IQ3_S),
        *(GgmlType.IQ1_S, GgmlType.IQ1_M),
    ],
    ids=lambda t: t.name,
)
def test_extremes_do_not_saturate(simd, type, eights):
    """The largest codes against activations all at +-127: the bound that each kernel claims."""
    rng = np.random.default_rng(3)
    rows, tokens = (16 * 24 * simd.row_group, 16) if eights else (16, 5)
    raw = random_blocks(rng, rows, 256, type)
    if type == GgmlType.Q8_0:
        raw.reshape(-1, 34)[:, 2:] = 128  # -128
    elif type == GgmlType.Q4_0:
        raw.reshape(-1, 18)[:, 2:] = 255
    elif type == GgmlType.Q6_K:
        raw.reshape(-1, 210)[:, :208] = 255  # code 63, scale -1
        raw.reshape(-1, 210)[:, 192:208] = 128  # scale -128
    elif type == GgmlType.IQ1_M:
        raw.reshape(-1, 56)[:, :48] = 255
        raw.reshape(-1, 56)[:, 48::2] = 255  # all scales 7, below the bits of d
        raw.reshape(-1, 56)[:, 49::2] |= 15
    elif type.name.startswith("IQ"):  # the grid's last word, which has its largest letters, negative, the largest scale
        raw.reshape(-1, type.block_bytes)[:, 2:] = 255
    else:
        raw.reshape(-1, type.block_bytes)[:, 4:] = 255
    for sign in (1.0, -1.0):
        x = np.full((tokens, 256), sign, np.float32)
        out = np.empty((tokens, rows), np.float32)
        simd.matmul(simd.pack(raw, type, 256), simd.activations(x), out)
        want = x.astype(np.float64) @ dequantize(raw, type).astype(np.float64).T
        np.testing.assert_allclose(out, want, rtol=1e-5)


@pytest.mark.parametrize("type", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [32, 21])
def test_packing_equals_numpy(simd, type, rows):
    cols = 768 if type in QUANTISED else 33
    raw = np.random.default_rng(0).integers(0, 256, (rows, type.row_bytes(cols)), dtype=np.uint8)
    packed = simd.pack(raw, type, cols)
    want = layout.pack(raw, type, cols, simd._isa.lanes)
    assert np.array_equal(packed.data.reshape(want.shape), want)
    assert packed.n_bytes == layout.packed_bytes(type, rows, cols, simd._isa.lanes)


def test_zero_rows_give_zero(simd):
    w = simd.pack(random_blocks(np.random.default_rng(0), 16, 256, GgmlType.Q4_K), GgmlType.Q4_K, 256)
    out = np.ones((2, 16), np.float32)
    simd.matmul(w, simd.activations(np.zeros((2, 256), np.float32)), out)
    assert not out.any()


def test_many_products_of_mixed_formats(simd):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    types = [GgmlType.Q4_K, GgmlType.Q6_K, GgmlType.Q8_0, GgmlType.F16, GgmlType.Q3_K, GgmlType.Q4_K]
    rows = [8, 40, 17, 64, 9, 100]
    ws = [simd.pack(random_blocks(rng, n, 256, t), t, 256) for n, t in zip(rows, types, strict=True)]
    outs = [np.empty((6, n), np.float32) for n in rows]
    simd.matmul_many(ws, simd.activations(x), outs)
    for w, out in zip(ws, outs, strict=True):
        single = np.empty_like(out)
        simd.matmul(w, simd.activations(x), single)
        assert np.array_equal(out, single)


@pytest.mark.parametrize("tokens", [1, 9])
def test_experts(simd, reference, tokens):
    rng = np.random.default_rng(tokens)
    d, ff, k, count = 64, 96, 3, 5
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    ids = np.stack([rng.permutation(count)[:k] for _ in range(tokens)])

    def experts(kernels):
        made = np.random.default_rng(1)
        return [
            Expert(
                e,
                *(
                    kernels.pack(random_blocks(made, rows, cols, GgmlType.F16), GgmlType.F16, cols)
                    for rows, cols in ((ff, d), (ff, d), (d, ff))
                ),
            )
            for e in range(count)
        ]

    results = []
    for kernels in (simd, reference):
        chosen, rows, slots = [], [], []
        for expert in experts(kernels):
            token, slot = np.nonzero(ids == expert.id)
            if len(token):
                chosen.append(expert)
                rows.append(token.astype(np.int32))
                slots.append((token * k + slot).astype(np.int32))
        out = np.full((tokens * k, d), np.nan, np.float32)
        kernels.experts_ffn(chosen, kernels.activations(x), rows, slots, "silu", out)
        results.append(out)
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * np.abs(results[1]).max()


def test_wrong_shapes_are_refused(simd):
    w = simd.pack(random_blocks(np.random.default_rng(0), 8, 64, GgmlType.Q8_0), GgmlType.Q8_0, 64)
    with pytest.raises(UsageError, match="cannot multiply"):
        simd.matmul(w, simd.activations(np.zeros((1, 32), np.float32)), np.zeros((1, 8), np.float32))
    with pytest.raises(UsageError, match="cannot multiply"):
        simd.matmul(w, simd.activations(np.zeros((1, 64), np.float32)), np.zeros((1, 9), np.float32))
