"""Products of every format, shape and implementation against dequantised weights in float64."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import DEQUANTIZERS, dequantize
from edgerun.kernels import kernel_names, layout
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.formats.activations import FORMS
from edgerun.kernels.formats.base import TURNED_BITS, TURNED_PAIRS, swap_masks
from edgerun.kernels.interface import Expert, ExpertVectors
from tests.kernels.blocks import filled_blocks, random_blocks
from tests.kernels.isas import IMPLEMENTATIONS

SETS = IMPLEMENTATIONS
NATIVE = list(FORMATS)
QUANTISED = [type for type, format in FORMATS.items() if format.form != "f32"]


def as_quantised(x: np.ndarray, type: GgmlType) -> np.ndarray:
    """What int8 activations keep of x; float formats keep all."""
    if type not in QUANTISED:
        return x.astype(np.float64)
    codes, scale = codes_of(x, type)
    return (codes * (short(scale) if scale.shape[1] * 32 == x.shape[1] else scale)).reshape(x.shape)


def codes_of(x: np.ndarray, type: GgmlType) -> tuple[np.ndarray, np.ndarray]:
    """Codes (tokens, blocks, cols) and f32 scales (tokens, blocks, 1) before they are rounded."""
    blocks = x.reshape(x.shape[0], -1, FORMS[FORMATS[type].form][0])
    top = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
    return np.rint(blocks * inverse), top / np.float32(127)


def short(x: np.ndarray) -> np.ndarray:
    """f32 to the nearest with 11 significant bits, ties to even -> f64."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa.astype(np.float64) * 2048), exponent - 11)


def of_rounded_sums(x: np.ndarray, raw: np.ndarray, type: GgmlType) -> np.ndarray | float:
    """What it adds to products (tokens, rows) that a block's smallest value meets a rounded sum of activations."""
    if type not in (GgmlType.Q4_1, GgmlType.Q5_1):
        return 0.0
    codes, scale = codes_of(x, type)
    sums = codes.sum(-1, dtype=np.float32)
    added = short(sums * scale[..., 0]) - sums * short(scale[..., 0])
    smallest = raw.reshape(len(raw), -1, type.block_bytes)[..., 2:4].copy().view(np.float16)[..., 0]
    return np.asarray(added @ smallest.astype(np.float64).T)


@pytest.mark.parametrize("type", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize(("tokens", "rows"), [(1, 64), (1, 37), (2, 37), (4, 64), (7, 37), (129, 37), (130, 64)])
def test_native_formats(simd, type, rows, tokens):
    rng = np.random.default_rng(int(type) * 1000 + rows + tokens)
    cols = 512 if type in QUANTISED else 100
    raw = random_blocks(rng, rows, cols, type)
    w = simd.pack(raw, type, cols)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    out = np.full((tokens, rows), np.nan, np.float32)
    simd.matmul(w, simd.activations(x), out)
    dense = dequantize(raw, type).astype(np.float64)
    want = as_quantised(x, type) @ dense.T + of_rounded_sums(x, raw, type)
    # Where F16 goes by tiles of bf16 three of its six products are made: `formats.floats`.
    left_out = (2**-15 + 2**-17) * (np.abs(x) @ np.abs(dense).T) if (simd.name, type) == ("amx", GgmlType.F16) else 0
    assert (np.abs(out - want) <= 2e-6 * np.abs(want).max() + left_out).all()

    alone = np.empty((1, rows), np.float32)
    simd.matmul(w, simd.activations(x[-1:].copy()), alone)
    assert np.array_equal(alone[0], out[-1]), "a row must not depend on its neighbours"

    twice = out.copy()
    simd.matmul(w, simd.activations(x), twice, add=True)
    np.testing.assert_allclose(twice, 2 * out, rtol=1e-5, atol=1e-5 * np.abs(out).max())


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_numbers_beyond_f16(simd, size):
    """Activations whose scale f16 does not have are kept as well as others."""
    rng = np.random.default_rng(2)
    raw = random_blocks(rng, 16, 64, GgmlType.Q8_0)
    x = (size * rng.standard_normal((2, 64))).astype(np.float32)
    out = np.empty((2, 16), np.float32)
    simd.matmul(simd.pack(raw, GgmlType.Q8_0, 64), simd.activations(x), out)
    want = as_quantised(x, GgmlType.Q8_0) @ dequantize(raw, GgmlType.Q8_0).astype(np.float64).T
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_every_type_has_kernels():
    assert set(FORMATS) == set(DEQUANTIZERS)


@pytest.mark.parametrize("type", [GgmlType.Q5_1, GgmlType.IQ2_S], ids=lambda t: t.name)
def test_a_format_without_kernels_runs(simd, monkeypatch, type):
    """As a type would that is only read."""
    monkeypatch.delitem(kernel_names.MATRIX_KERNELS, type)
    rng = np.random.default_rng(int(type))
    raw = random_blocks(rng, 24, 512, type)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    out = np.empty((3, 24), np.float32)
    simd.matmul(simd.pack(raw, type, 512), simd.activations(x), out)
    want = x.astype(np.float64) @ dequantize(raw, type).astype(np.float64).T
    np.testing.assert_allclose(out, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("value", [0, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
def test_extremes_do_not_saturate(simd, type, value):
    """The largest codes, scales and minima against activations all at +-127: the bounds that chains of products
    claim."""
    raw = filled_blocks(np.random.default_rng(3), 32, 512, type, value)
    w = simd.pack(raw, type, 512)
    dense = dequantize(raw, type).astype(np.float64)
    signs = np.full((7, 512), 127 / 128, np.float32)  # whose scale is one of f16
    signs[1], signs[2, ::2], signs[3, 1::2], signs[4, :256], signs[5, ::16] = (-127 / 128,) * 5
    signs = np.tile(signs, (4, 1))  # as many as go by tiles, where there are some
    out = np.empty((28, 32), np.float32)
    simd.matmul(w, simd.activations(signs), out)
    want = signs.astype(np.float64) @ dense.T
    assert np.abs(out - want).max() <= 1e-5 * np.abs(dense).sum(1).max()


@pytest.mark.parametrize(
    "type", [GgmlType.Q4_0, GgmlType.Q5_1, GgmlType.Q6_K, GgmlType.IQ2_S, GgmlType.F16], ids=lambda t: t.name
)
@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_every_cut_into_tiles(simd, type, groups):
    """Rows and groups that are no whole tiles: each result is that of its row alone, once, and nothing else is
    touched."""
    rng = np.random.default_rng(groups)
    rows, cols = groups * simd.row_group - 3, 256
    w = simd.pack(random_blocks(rng, rows, cols, type), type, cols)
    x = rng.standard_normal((19, cols)).astype(np.float32)
    alone = np.empty((19, rows), np.float32)
    for row in range(19):
        simd.matmul(w, simd.activations(x[row : row + 1].copy()), alone[row : row + 1])
    for tokens in range(1, 20):
        memory = np.full((tokens + 2, rows), 7, np.float32)
        simd.matmul(w, simd.activations(x[:tokens].copy()), memory[1:-1])
        assert np.array_equal(memory[1:-1], alone[:tokens])
        assert (memory[[0, -1]] == 7).all()
        simd.matmul(w, simd.activations(x[:tokens].copy()), memory[1:-1], add=True)
        assert np.array_equal(memory[1:-1], alone[:tokens] + alone[:tokens]), "each is added once"


@pytest.mark.parametrize("type", QUANTISED, ids=lambda t: t.name)
@pytest.mark.parametrize(("tokens", "cols"), [(37, 256), (43, 2560)])
def test_many_rows_are_what_few_are(simd, type, tokens, cols):
    """Where many rows of activations go by tiles: every bit of them, stored and added once, and nothing beside them."""
    rng = np.random.default_rng(tokens)
    rows = 2 * simd.row_group + 5
    w = simd.pack(random_blocks(rng, rows, cols, type), type, cols)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    few = np.empty((tokens, rows), np.float32)
    for low in range(0, tokens, 9):
        part = np.ascontiguousarray(x[low : low + 9])
        simd.matmul(w, simd.activations(part), few[low : low + 9])
    memory = np.full((tokens + 2, rows), 7, np.float32)
    simd.matmul(w, simd.activations(x), memory[1:-1])
    assert memory[1:-1].tobytes() == few.tobytes()
    assert (memory[[0, -1]] == 7).all()
    simd.matmul(w, simd.activations(x), memory[1:-1], add=True)
    assert np.array_equal(memory[1:-1], few + few)


@pytest.mark.parametrize("type", [GgmlType.F16, GgmlType.BF16], ids=lambda t: t.name)
@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e-30, 1e35])
def test_tiny_and_huge_numbers_alone(simd, type, size):
    """Rows whose numbers, products and sums are subnormal or near the end of f32: bit for bit what they are alone."""
    rng = np.random.default_rng(1)
    w = simd.pack(random_blocks(rng, 40, 96, type), type, 96)
    x = (size * rng.standard_normal((19, 96))).astype(np.float32)
    x[::3] = np.repeat(x[::3, :8], 12, axis=1) * rng.choice([-1, 1], (7, 96))  # sums that cancel
    out, alone = np.empty((19, 40), np.float32), np.empty((1, 40), np.float32)
    simd.matmul(w, simd.activations(x), out)
    for row, each in zip(x, out, strict=True):
        simd.matmul(w, simd.activations(row[None].copy()), alone)
        assert alone[0].tobytes() == each.tobytes()


def test_turned_bits():
    """Bit 4 t + j of a word goes to bit t of byte j; pairs of bits change byte and place within it."""
    words = np.array([1 << place for place in range(32)], np.uint32)

    def turn(swaps):
        found = words.copy()
        for shift, mask in swap_masks(swaps):
            moved = ((found >> np.uint32(shift)) ^ found) & np.uint32(mask)
            found ^= moved ^ (moved << np.uint32(shift))
        return np.log2(found).astype(int).tolist()

    assert turn(TURNED_BITS) == [8 * (place % 4) + place // 4 for place in range(32)]
    assert turn(TURNED_PAIRS) == [8 * (p % 8 // 2) + 2 * (p // 8) + p % 2 for p in range(32)]


@pytest.mark.parametrize("type", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [32, 21])
def test_packing_equals_numpy(simd, type, rows):
    cols = 768 if type in QUANTISED else 33
    raw = np.random.default_rng(0).integers(0, 256, (rows, type.row_bytes(cols)), dtype=np.uint8)
    packed = simd.pack(raw, type, cols)
    want = layout.pack(raw, type, cols, simd.row_group)
    assert np.array_equal(packed.data.reshape(want.shape), want)
    assert packed.n_bytes == layout.packed_bytes(type, rows, cols, simd.row_group)
    memory = np.empty(packed.n_bytes + 8, np.uint8)
    assert memory.ctypes.data % 16 == 0  # so eight bytes on no vector is where stores past the caches want it
    assert np.array_equal(simd.pack(raw, type, cols, memory[8:]).data.reshape(want.shape), want)


def test_zero_rows_give_zero(simd):
    w = simd.pack(random_blocks(np.random.default_rng(0), 16, 256, GgmlType.Q4_K), GgmlType.Q4_K, 256)
    out = np.ones((2, 16), np.float32)
    simd.matmul(w, simd.activations(np.zeros((2, 256), np.float32)), out)
    assert not out.any()


def test_many_products_of_mixed_formats(simd):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 256)).astype(np.float32)
    types = [GgmlType.Q4_K, GgmlType.IQ2_S, GgmlType.Q8_0, GgmlType.F16, GgmlType.IQ4_NL, GgmlType.Q4_K]
    rows = [8, 40, 17, 64, 9, 100]
    ws = [simd.pack(random_blocks(rng, n, 256, t), t, 256) for n, t in zip(rows, types, strict=True)]
    outs = [np.empty((6, n), np.float32) for n in rows]
    simd.matmul_many(ws, simd.activations(x), outs)
    for w, out in zip(ws, outs, strict=True):
        single = np.empty_like(out)
        simd.matmul(w, simd.activations(x), single)
        assert np.array_equal(out, single)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(
    ("activation", "gate", "scale", "bias"),
    [
        ("silu", True, False, False),
        ("oai", True, False, True),
        ("silu", True, True, True),
        ("relu2", False, True, True),
    ],
)
def test_experts(simd, reference, tokens, activation, gate, scale, bias):
    rng = np.random.default_rng(tokens)
    d, ff, k, count = 64, 96, 3, 5
    factors = [rng.random(count).astype(np.float32) if scale else None for _ in range(2)]
    biases = [rng.standard_normal((count, ff)).astype(np.float32) if bias else None for _ in range(2)]
    vectors = ExpertVectors(factors[0], biases[0], factors[1], biases[1])
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    ids = np.stack([rng.permutation(count)[:k] for _ in range(tokens)])

    def experts(kernels):
        made = np.random.default_rng(1)
        return [
            Expert(e, gates if gate else None, up, down)
            for e in range(count)
            for gates, up, down in [
                [
                    kernels.pack(random_blocks(made, rows, cols, GgmlType.F32), GgmlType.F32, cols)
                    for rows, cols in ((ff, d), (ff, d), (d, ff))
                ]
            ]
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
        kernels.experts_ffn(chosen, kernels.activations(x), rows, slots, activation, out, vectors)
        results.append(out)
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * np.abs(results[1]).max()


def test_wrong_shapes_are_refused(simd):
    w = simd.pack(random_blocks(np.random.default_rng(0), 8, 64, GgmlType.Q8_0), GgmlType.Q8_0, 64)
    with pytest.raises(UsageError, match="cannot multiply"):
        simd.matmul(w, simd.activations(np.zeros((1, 32), np.float32)), np.zeros((1, 8), np.float32))
    with pytest.raises(UsageError, match="cannot multiply"):
        simd.matmul(w, simd.activations(np.zeros((1, 64), np.float32)), np.zeros((1, 9), np.float32))
