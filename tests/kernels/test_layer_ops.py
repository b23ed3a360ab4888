"""Attention, norms, rotary embedding, gates: every implementation against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.errors import UnsupportedError, UsageError
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kernels.page_arrays import rotated
from edgerun.kernels.routing import Routing, route
from tests.kernels.paged import Paged

# tokens, heads, kv heads, head_dim, head_dim_v, start, capacity, window, softcap
ATTENTION = [
    (1, 8, 2, 64, 64, 0, 512, 0, 0.0),
    (1, 8, 2, 64, 64, 300, 512, 0, 0.0),
    (1, 4, 4, 8, 8, 30, 64, 0, 0.0),
    (1, 8, 1, 96, 80, 700, 1024, 100, 30.0),
    (1, 6, 2, 20, 20, 300, 1024, 0, 0.0),
    (5, 8, 2, 64, 64, 0, 512, 0, 0.0),
    (70, 8, 2, 64, 64, 100, 512, 0, 0.0),
    (33, 3, 1, 20, 36, 70, 512, 0, 5.0),
    (100, 8, 8, 64, 64, 150, 512, 40, 0.0),
    (2, 4, 4, 8, 8, 3, 64, 0, 0.0),
    (64, 4, 2, 16, 16, 0, 64, 10, 0.0),
]


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(simd, reference, case):
    tokens, heads, kv_heads, dim, dim_v, start, capacity, window, softcap = case
    rng = np.random.default_rng(sum(map(int, case)))
    q = 2 * rng.standard_normal((tokens, heads, dim)).astype(np.float32)
    end = start + tokens
    first = max(0, start + 1 - window) // KEYS_PER_PAGE * KEYS_PER_PAGE if window else 0
    k, v = (rng.standard_normal((end - first, kv_heads, n)).astype(np.float32) for n in (dim, dim_v))
    paged = Paged(kv_heads, dim, dim_v, capacity, skipped=first).write(k, v, first)
    out, want = np.empty((2, tokens, heads, dim_v), np.float32)
    for kernels, result in ((simd, out), (reference, want)):
        spans = [paged.span(start, tokens)]
        kernels.attention(q, spans, result, scale=dim**-0.5, softcap=softcap, window=window)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("keys", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("start", "tokens"), [(0, 1), (511, 1), (300, 5), (480, 100)])
def test_sinks_take_their_share_and_chunks_hide_what_came_before(simd, reference, keys, start, tokens):
    """Sinks below, among and far above the scores; the last rows cross into another chunk."""
    rng = np.random.default_rng(start)
    sinks = np.array([-80, -2, 0.5, 3, 9, 80], np.float32)
    q = 2 * rng.standard_normal((tokens, 6, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, start + tokens, 2, 32)).astype(np.float32)
    paged = Paged(2, 32, 32, 768, keys=KV_FORMATS[keys], values=KV_FORMATS[keys]).write(k, v)
    for window, chunked in ((0, False), (90, False), (128, True)):
        out, want, plain = np.empty((3, tokens, 6, 32), np.float32)
        for kernels, result in ((simd, out), (reference, want)):
            more = {"window": window, "chunked": chunked, "sinks": sinks}
            kernels.attention(q, [paged.span(start, tokens)], result, scale=32**-0.5, **more)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=3e-5)
        reference.attention(q, [paged.span(start, tokens)], plain, scale=32**-0.5, window=window, chunked=chunked)
        np.testing.assert_allclose(want[:, 0], plain[:, 0], rtol=1e-5, atol=1e-6)  # the lowest sink takes nothing
        assert (np.abs(want[:, 5]) < 1e-6).all()  # the highest everything


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu", "relu2", "oai"])
def test_gated(simd, reference, activation):
    rng = np.random.default_rng(1)
    gate, up = 8 * rng.standard_normal((2, 3, 77)).astype(np.float32)
    gate[0, :4] = (-200, 200, 0, -87.5)
    out, want = np.empty((2, 3, 77), np.float32)
    simd.gated(gate, up, activation, out)
    reference.gated(gate, up, activation, want)
    np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)
    simd.gated(gate, None, activation, out)
    reference.gated(gate, None, activation, want)
    np.testing.assert_allclose(out, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("cols", [1, 8, 77])
@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_norm_in_place(simd, reference, cols, with_bias):
    rng = np.random.default_rng(cols)
    x = (5 + rng.standard_normal((9, cols))).astype(np.float32)
    weight, bias = rng.standard_normal((2, cols)).astype(np.float32)
    want = np.empty_like(x)
    reference.layer_norm(x, weight, bias if with_bias else None, 1e-5, want)
    by_hand = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * weight + with_bias * bias
    np.testing.assert_allclose(want, by_hand, rtol=1e-5, atol=1e-5)
    simd.layer_norm(x, weight, bias if with_bias else None, 1e-5, x)
    np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)


def test_affine(simd, reference):
    rng = np.random.default_rng(0)
    start, scale, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 77), (4,), (4, 77)))
    ids = np.array([3, 0, 1, 3, 2, 2, 0, 1, 3], np.int32)
    for entries, factors, shift in ((ids, scale, bias), (ids, None, bias), (ids, scale, None), (None, scale, bias)):
        x, want = start.copy(), start.copy()
        simd.affine(x, entries, factors, shift)
        reference.affine(want, entries, factors, shift)
        np.testing.assert_array_equal(x, want)  # a product and a sum, each rounded
    simd.scale(x, 0.3)
    reference.scale(want, 0.3)
    np.testing.assert_array_equal(x, want)
    for entries, factors, shift in ((ids, scale[:3], None), (ids, None, bias[:, :76]), (ids[:8], scale, None)):
        with pytest.raises(UsageError, match="cannot be changed"):
            simd.affine(x, entries, factors, shift)


@pytest.mark.parametrize("cols", [1, 8, 77, 2048])
def test_rms_norm_in_place(simd, reference, cols):
    rng = np.random.default_rng(cols)
    x = rng.standard_normal((9, cols)).astype(np.float32)
    weight = rng.standard_normal(cols).astype(np.float32)
    want = np.empty_like(x)
    reference.rms_norm(x, weight, 1e-5, want)
    simd.rms_norm(x, weight, 1e-5, x)
    np.testing.assert_allclose(x, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sigmoid", "softplus"])
def test_head_gate(simd, reference, kind):
    """Of every column, as columns of a wider array, and of one number a head; far from zero too."""
    x = np.random.default_rng(2).standard_normal((5, 77)).astype(np.float32)
    gate = np.linspace(-100, 100, 5 * 200, dtype=np.float32).reshape(5, 200)
    for each in (gate[:, 20:97], gate[:, 99:100]):
        out, want = x.copy(), x.copy()
        simd.head_gate(out, each, kind)
        reference.head_gate(want, each, kind)
        np.testing.assert_allclose(out, want, rtol=2e-6, atol=1e-30)
    far = gate[:, 99:100].astype(np.float64)
    exact = np.log1p(np.exp(far)) if kind == "softplus" else 1 / (1 + np.exp(-far))
    np.testing.assert_allclose(want, x * exact, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("kind", ["norm", "neox"])
@pytest.mark.parametrize(("dim", "rot"), [(20, 20), (20, 8), (6, 6), (64, 64), (128, 96), (80, 40)])
def test_rope(simd, reference, kind, dim, rot):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, dim)).astype(np.float32)
    want = x.copy()
    angle = rng.random((5, rot // 2)).astype(np.float32)
    simd.rope(x, np.cos(angle), np.sin(angle), kind)
    reference.rope(want, np.cos(angle), np.sin(angle), kind)
    np.testing.assert_array_equal(x, want)  # two products and a sum, each rounded


FORMATS = [(keys, values) for keys in KV_FORMATS for values in KV_FORMATS if (keys, values) != ("f16", "f16")]


@pytest.mark.parametrize(("keys", "values"), FORMATS)
def test_attention_over_quantised_keys_and_values(simd, reference, keys, values):
    """Over the numbers that the codes stand for, as exactly as over f16; what kv_write makes of them is the same byte
    for byte."""
    rng = np.random.default_rng(1)
    k, v = (3 * rng.standard_normal((330, 2, n)).astype(np.float32) for n in (64, 96))
    v[5, 0, :32], v[9, 1, :32] = 0, 1e-9  # no scale, and one that f16 does not have
    formats = {"keys": KV_FORMATS[keys], "values": KV_FORMATS[values]}
    paged, other = Paged(2, 64, 96, 512, **formats), Paged(2, 64, 96, 512, **formats)
    k += 10 * rng.standard_normal((1, 2, 64)).astype(np.float32)  # what all keys have in common
    for kernels, pages in ((simd, paged), (reference, other)):
        for low, high in ((0, 7), (7, 300), (300, 330)):
            kernels.kv_write([pages.span(low, high - low)], k[low:high].copy(), v[low:high].copy())
    for got, want in zip(paged.read(0, 330), other.read(0, 330), strict=True):
        assert got.tobytes() == want.tobytes()
    kept = paged.read(0, 330)
    k = rotated(k) if keys == "q4_0" else k
    for got, want, name in ((kept[0], k, keys), (kept[1], v, values)):
        most = {"f16": 3e-4, "q8_0": 6e-3, "q4_0": 0.1}[name]
        assert np.linalg.norm(got - want) <= most * np.linalg.norm(want)
    for start, tokens, window in ((329, 1, 0), (326, 4, 100), (280, 50, 0), (290, 40, 70)):
        q = rng.standard_normal((tokens, 6, 64)).astype(np.float32)
        out, want, alone = np.empty((3, tokens, 6, 96), np.float32)
        simd.attention(q, [paged.span(start, tokens)], out, scale=0.1, window=window)
        reference.attention(q, [paged.span(start, tokens)], want, scale=0.1, window=window)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=3e-5)  # scores of some tens, in f32
        for i in range(tokens):
            row, span = q[i : i + 1].copy(), paged.span(start + i, 1)
            simd.attention(row, [span], alone[i : i + 1], scale=0.1, window=window)
        assert alone.tobytes() == out.tobytes()


@pytest.mark.parametrize("dim", [32, 64, 96, 256])
def test_rotation_changes_no_product(dim):
    rng = np.random.default_rng(dim)
    q, k = rng.standard_normal((2, 50, 3, dim)).astype(np.float32)
    k[..., 7] = 40
    np.testing.assert_allclose((rotated(q) * rotated(k)).sum(-1), (q * k).sum(-1), atol=3e-4)
    assert abs(rotated(k)).max() < 0.5 * 40, "what was large is spread"


def test_heads_that_cannot_be_quantised():
    with pytest.raises(UnsupportedError, match="heads of 80 dimensions cannot be kept in q8_0"):
        Paged(2, 80, 80, 100, keys=KV_FORMATS["q8_0"])


def test_attention_of_several_sequences(simd, reference):
    """Short and long spans of sequences that are long, short and new, in one call: as if each were alone."""
    rng = np.random.default_rng(0)
    starts, rows = [300, 0, 700, 31, 5, 511, 1000], [1, 1, 3, 8, 20, 40, 1]
    q = rng.standard_normal((sum(rows), 6, 32)).astype(np.float32)
    kept = []
    for start, n in zip(starts, rows, strict=True):
        k, v = (rng.standard_normal((start + n, 2, dim)).astype(np.float32) for dim in (32, 24))
        kept.append(Paged(2, 32, 24, start + n, seed=7).write(k, v))
    spans = [each.span(start, n) for each, start, n in zip(kept, starts, rows, strict=True)]
    for window in (0, 290):
        out, want = np.empty((2, len(q), 6, 24), np.float32)
        simd.attention(q, spans, out, scale=0.2, window=window)
        reference.attention(q, spans, want, scale=0.2, window=window)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=5e-6)
        row = 0
        for span in spans:
            alone = np.empty((span.rows, 6, 24), np.float32)
            simd.attention(q[row : row + span.rows].copy(), [span], alone, scale=0.2, window=window)
            assert alone.tobytes() == out[row : row + span.rows].tobytes()
            row += span.rows


def test_kv_write(simd, reference):
    """Two sequences; one goes over the end of a page."""
    k, v = (np.random.default_rng(0).standard_normal((8, 3, n)).astype(np.float32) for n in (20, 12))
    made = []
    for kernels in (simd, reference):
        one, other = Paged(3, 20, 12, 512), Paged(3, 20, 12, 100, seed=1)
        kernels.kv_write([one.span(253, 5), other.span(61, 3)], k, v)
        made.append(one.bytes() + other.bytes())
    assert made[0] == made[1]
    for paged, start, part in ((one, 253, slice(0, 5)), (other, 61, slice(5, 8))):
        keys, values = paged.read(start, start + part.stop - part.start)
        assert np.array_equal(keys, k[part].astype(np.float16))
        assert np.array_equal(values, v[part].astype(np.float16))
    assert np.isnan(one.read(0, 253)[0]).all() and np.isnan(one.read(258, 512)[1]).all()
    for spans, rows in (([one.span(508, 8)], 8), ([one.span(0, 7)], 8), ([one.span(0, 9)], 8), ([], 0)):
        with pytest.raises(UsageError):
            simd.kv_write(spans, k[:rows], v[:rows])
    gone = Paged(3, 20, 12, 512, skipped=256)
    for call in (simd, reference):
        with pytest.raises(UsageError, match="lie outside the pages that are held"):
            call.kv_write([gone.span(250, 8)], k, v)
    with pytest.raises(UsageError, match="cannot write"):
        simd.kv_write([one.span(0, 8)], k, v[:7])


@pytest.mark.parametrize("add", [False, True])
def test_combine(simd, reference, add):
    rng = np.random.default_rng(0)
    parts, weights = rng.standard_normal((12, 77)).astype(np.float32), rng.random((4, 3)).astype(np.float32)
    out, want = np.ones((2, 4, 77), np.float32)
    simd.combine(parts, weights, out, add=add)
    reference.combine(parts, weights, want, add=add)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "softmax_topk", "sigmoid", "sqrt_softplus"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_route_by_hand(kind, renormalise):
    logits = np.array([[0.0, 2.0, 1.0, 2.0]], np.float32)
    ids, weights = route(logits, Routing(kind, 2, renormalise, 2.0))
    assert ids.tolist() == [[1, 3]], "ties go to the lower id"
    e = np.exp([0.0, 2.0, 1.0, 2.0])
    one = {"softmax": e[1] / e.sum(), "softmax_topk": 0.5, "sigmoid": 1 / (1 + np.exp(-2.0))}
    one = {**one, "sqrt_softplus": np.log1p(np.exp(2.0)) ** 0.5}[kind]
    np.testing.assert_allclose(weights, [[1.0, 1.0] if renormalise else [2 * one, 2 * one]], rtol=1e-6)


def test_experts_are_chosen_by_groups_and_bias():
    """The best expert is in a group whose two best are worse together; a bias moves the choice, not the weights."""
    logits = np.array([[9.0, -9, -9, 2, 3, 1, 1, 1, 2]], np.float32)
    routing = Routing("sigmoid", 2, renormalise=False, groups=3, groups_used=1)
    assert route(logits, routing)[0].tolist() == [[4, 3]]
    bias = np.array([0, 0, 0, 0, 0, 0, 0, 5, 0], np.float32)
    ids, weights = route(logits, routing, bias)
    assert ids.tolist() == [[7, 8]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp([[-1.0, -2.0]])), rtol=1e-6)
    with pytest.raises(UsageError, match="cannot use 2 of 4 groups of 9 experts"):
        route(logits, Routing("sigmoid", 2, groups=4, groups_used=2))


@pytest.mark.parametrize("tokens", [1, 3, 9, 40])
def test_a_score_that_is_no_number_spoils_its_row(simd, tokens):
    """However many rows there are: where there is one position to see, its weight must not make it 1 again."""
    q, k, v = (np.ones((tokens, 2, 32), np.float32) for _ in range(3))
    q[0] = np.nan
    paged, out = Paged(2, 32, 32, 64).write(k, v, 0), np.empty_like(q)
    simd.attention(q, [paged.span(0, tokens)], out, scale=0.2)
    assert np.isnan(out[0]).all() and np.isfinite(out[1:]).all()
