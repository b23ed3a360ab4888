"""Outliers planted in a model spoil a narrow grid, and do not where they are computed apart or rotated away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgerun.errors import ReadError, UnsupportedError
from edgerun.formats.file_bytes import FileBytes
from edgerun.prefill.graphs import Stored
from edgerun.prefill.hadamard import check_rotatable, rotate
from edgerun.prefill.ranges import Extremes, most_channels
from edgerun.prefill.schemes import Scheme
from edgerun.prefill.shadow import excess, find_shadow
from edgerun.prefill.weights import narrow, pack_nibbles
from tests.prefill.making import Model, attached, build, load, ort_backend, ranges_of, relative, tokens
from tests.prefill.planting import CHANNEL, KINDS, WIDE, write_planted

FACTOR = 60.0
EVERY = tuple(KINDS)
Planted = Callable[..., Model]


@pytest.fixture(scope="module")
def planted(tmp_path_factory, kernels) -> Planted:
    """kinds of outliers -> the model with them."""
    folder, known = tmp_path_factory.mktemp("planted"), {}

    def get(*kinds: str) -> Model:
        if kinds not in known:
            path = write_planted(folder / f"{'-'.join(kinds) or 'plain'}.gguf", kinds, FACTOR)
            known[kinds] = load(WIDE, path, kernels)
        return known[kinds]

    return get


def error(model: Model, folder, scheme="w8a8", **options) -> float:
    """Relative, of a prompt that is not the one on which ranges were found."""
    ids = tokens(200, seed=21)
    want = model.logits(ids)
    backend = ort_backend(model, build(model, folder, scheme, (128,), **options))
    with attached(backend, model.decoder):
        return relative(model.logits(ids), want)


def shadowed(model: Model, **options) -> list[set[str]]:
    from edgerun.prefill.schemes import SCHEMES

    return [set(each.shadowed) for each in ranges_of(model, SCHEMES["w8a8"], **options)]


def test_planting_changes_nothing(planted):
    ids = tokens(100)
    assert relative(planted(*EVERY).logits(ids), planted().logits(ids)) < 1e-4


@pytest.mark.parametrize(
    "kinds", [(), *((kind,) for kind in KINDS), EVERY], ids=lambda kinds: "+".join(kinds) or "none"
)
def test_the_planted_products_are_shadowed(planted, kinds):
    expected = {product for kind in kinds for product in KINDS[kind]}
    assert shadowed(planted(*kinds)) == [expected] * WIDE.layers
    assert shadowed(planted(*kinds), shadow=False) == [set()] * WIDE.layers


@pytest.mark.parametrize("weights", ["i8", "i7"])
def test_shadow_mends_what_outliers_spoil(planted, tmp_path, weights):
    """Measured from the same narrow weights with activations of 16 bits: what the activations' grid does. (Planting
    makes weights small, so int8 rounds them off, with and without a shadow.)"""
    narrow, wide = Scheme("narrow", weights, "u8"), Scheme("wide", weights, "u16")
    ids = tokens(200, seed=21)

    def of_activations(model: Model, shadow: bool) -> float:
        results = []
        for scheme in (wide, narrow):
            built = build(model, tmp_path, scheme, (128,), shadow=shadow)
            with attached(ort_backend(model, built), model.decoder):
                results.append(model.logits(ids))
        return relative(results[1], results[0])

    plain = of_activations(planted(), False)
    spoilt, mended = (of_activations(planted(*EVERY), shadow) for shadow in (False, True))
    assert spoilt > 4 * plain, "outliers take the grid's steps from all others"
    assert mended < 1.3 * plain, "computed apart they do no harm"


def test_the_whole_error_with_and_without(planted, tmp_path):
    """From the kernels' logits, int8 weights and all."""
    plain = error(planted(), tmp_path)
    spoilt, mended = (error(planted(*EVERY), tmp_path, shadow=shadow) for shadow in (False, True))
    assert mended < 1.3 * plain and spoilt > 4 * plain


@pytest.mark.parametrize("kind", KINDS)
def test_each_product_is_mended(planted, tmp_path, kind):
    """Each alone: graphs are cut at another place."""
    spoilt = error(planted(kind), tmp_path, shadow=False)
    mended = error(planted(kind), tmp_path)
    assert mended < 0.6 * spoilt


def test_rotation_and_both(planted, tmp_path):
    model = planted("norms")
    neither = error(model, tmp_path, shadow=False)
    rotated = error(model, tmp_path, shadow=False, rotated=True)
    both = error(model, tmp_path, rotated=True)
    assert rotated < 0.5 * neither and both < 0.5 * neither
    assert shadowed(model, rotated=True) == [set()] * WIDE.layers, "nothing stands out any more"


def test_rotation_leaves_other_outliers_to_the_shadow(planted, tmp_path):
    """Attention's result and the neurons are not the residual stream: they are not rotated."""
    model = planted(*EVERY)
    assert shadowed(model, rotated=True) == [{"o", "down"}] * WIDE.layers
    assert error(model, tmp_path, rotated=True) < 0.5 * error(model, tmp_path, shadow=False, rotated=True)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_shadow_of_wide_activations(planted, tmp_path, scheme):
    """65535 steps are enough for the activations, but narrow weights that meet large ones cost: outliers' are exact."""
    with_shadow = error(planted(*EVERY), tmp_path, scheme)
    without = error(planted(*EVERY), tmp_path, scheme, shadow=False)
    assert with_shadow < without


def test_a_text_with_more_outliers_than_were_seen(planted, tmp_path):
    """The excess is taken of whatever comes: a range that is far too small for all channels loses nothing."""
    from dataclasses import replace

    from edgerun.prefill.build import build_model
    from edgerun.prefill.schemes import SCHEMES

    model, ids = planted("norms"), tokens(100, seed=5)
    want = model.logits(ids)
    found = ranges_of(model, SCHEMES["w8a8"])
    tight = [replace(each, kept=each.kept | {name: (-0.5, 0.5) for name in each.shadowed}) for each in found]
    built = build_model(tmp_path, model.gguf, model.spec, SCHEMES["w8a8"], tight, (128,))
    with attached(ort_backend(model, built), model.decoder):
        assert relative(model.logits(ids), want) < 0.07
    loose = build(model, tmp_path, "w8a8", (128,), shadow=False)
    with attached(ort_backend(model, loose), model.decoder):
        assert relative(model.logits(ids), want) > 0.14, "while covering everything"


finite = st.floats(-1e4, 1e4, width=32)


@given(
    x=arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=finite),
    ends=st.tuples(st.floats(-100, 0, width=32), st.floats(0, 100, width=32)),
)
def test_excess_and_the_rest_are_the_whole(x, ends):
    clipped = np.clip(x, *map(np.float32, ends))
    found = excess(x, ends)
    if found is None:
        assert np.array_equal(clipped, x)
        return
    cols, beyond = found
    whole = clipped.copy()
    whole[:, cols] += beyond
    np.testing.assert_allclose(whole, x, rtol=1e-6, atol=1e-4)
    others = np.setdiff1d(np.arange(x.shape[1]), cols)
    assert np.array_equal(clipped[:, others], x[:, others])
    assert beyond.any(axis=0).all(), "only columns that go beyond"


def extremes(rows: list[list[float]]) -> Extremes:
    seen = Extremes(len(rows[0]))
    for row in rows:
        seen.see(np.array([row], np.float32))
    return seen


def test_the_clipping_rule():
    ordinary = list(np.linspace(0.5, 1.0, 99))
    assert extremes([[*ordinary, 50.0]]).clipped() == ((0.0, 1.0), (99,))
    assert extremes([[*ordinary, -50.0], [*(-x for x in ordinary), 0.0]]).clipped() == ((-1.0, 1.0), (99,))
    # eight outliers of a hundred channels may be left out, nine may not
    assert extremes([[50.0] * 8 + ordinary[7:]]).clipped() == ((0.0, 1.0), tuple(range(8)))
    assert extremes([[50.0] * 9 + ordinary[8:]]).clipped() == ((0.0, 50.0), ())
    # a gain of less than two is not worth it
    assert extremes([[*ordinary, 1.9]]).clipped() == ((0.0, pytest.approx(1.9)), ())
    assert extremes([[*ordinary, 2.1]]).clipped() == ((0.0, 1.0), (99,))
    # a channel counts by its largest magnitude, over all rows
    assert extremes([[*ordinary, 0.1], [*ordinary, -9.0]]).clipped() == ((0.0, 1.0), (99,))
    # no outliers, and nothing at all
    assert extremes([ordinary]).clipped() == ((0.0, 1.0), ())
    assert extremes([[0.0] * 64]).clipped() == ((0.0, 0.0), ())
    # zero belongs to every range: padding is zeros
    assert extremes([[3.0] * 60]).whole() == (0.0, 3.0)
    assert extremes([[-3.0] * 60]).whole() == (-3.0, 0.0)


@given(
    rows=arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(2, 120)), elements=finite),
)
def test_clipping_leaves_out_few_and_gains(rows):
    seen = Extremes(rows.shape[1])
    seen.see(rows)
    (low, high), channels = seen.clipped()
    assert low <= 0 <= high
    if not channels:
        assert (low, high) == seen.whole()
        return
    outside = ((rows < low) | (rows > high)).any(axis=0)
    assert set(np.flatnonzero(outside)) <= set(channels)
    assert 1 <= outside.sum() <= len(channels) <= most_channels(rows.shape[1])
    assert np.abs(rows).max() >= 2 * max(-low, high) * (1 - 1e-6)


@pytest.mark.parametrize("width", [1, 2, 7, 48, 64, 96, 320, 896])
def test_rotation_is_orthonormal_and_its_own_inverse(width):
    turned = rotate(np.eye(width, dtype=np.float32))
    np.testing.assert_allclose(turned @ turned.T, np.eye(width), atol=1e-5)
    np.testing.assert_allclose(turned, turned.T, atol=1e-6)
    x = np.random.default_rng(0).standard_normal((5, width)).astype(np.float32)
    np.testing.assert_allclose(rotate(rotate(x)), x, atol=1e-5)
    np.testing.assert_allclose(rotate(x), x @ turned, atol=1e-4)
    np.testing.assert_allclose(rotate(x.T, axis=0), rotate(x).T, atol=1e-6)
    block = width & -width
    spread = rotate(np.eye(width, dtype=np.float32)[:1] * 100)
    assert np.abs(spread).max() == pytest.approx(100 / block**0.5, rel=1e-5), "an outlier is spread over its block"


def test_what_cannot_be_rotated(models):
    for name, reason in (("gemma2", "norms what it adds"), ("mixtral", "experts")):
        with pytest.raises(UnsupportedError, match=reason):
            check_rotatable(models(name).spec)
    check_rotatable(models("bitnet").spec)


@pytest.mark.parametrize(("bits", "block"), [(8, 0), (7, 0), (4, 0), (4, 32)])
def test_shadow_weights_are_the_backends(tmp_path, bits, block):
    """What is read back from the file is what was narrowed, column by column; of known outliers what there was."""
    matrix = np.random.default_rng(1).standard_normal((64, 10)).astype(np.float32)
    integers, scale = narrow(matrix, bits, block)
    data = pack_nibbles(integers) if bits == 4 else integers.view(np.uint8).reshape(-1)
    path = tmp_path / "weights"
    exact = matrix[[5, 32]]
    path.write_bytes(data.tobytes() + scale.tobytes() + exact.tobytes())
    stored = {
        "o.t": Stored("INT4" if bits == 4 else "INT8", integers.shape, 0, data.nbytes),
        "o.t.scale": Stored("FLOAT", scale.shape, data.nbytes, scale.nbytes),
        "o.t.exact": Stored("FLOAT", exact.shape, data.nbytes + scale.nbytes, exact.nbytes),
    }
    cols = np.array([0, 31, 32, 63])
    expected = integers * (np.repeat(scale, 32, axis=0) if block else scale)
    weights = find_shadow(FileBytes(path), stored, "o.t", (5, 32)).columns(cols)
    np.testing.assert_array_equal(weights[[0, 1, 3]], expected[[0, 31, 63]].astype(np.float32))
    np.testing.assert_array_equal(weights[2], matrix[32])
    np.testing.assert_allclose(expected, matrix, atol=float(scale.max()) * 0.51)
    path.write_bytes(data.tobytes())
    with pytest.raises(ReadError, match=f"{path.name} is shorter"):
        find_shadow(FileBytes(path), stored, "o.t", (5, 32))


def test_outliers_are_where_they_were_planted(planted):
    from edgerun.prefill.observe import KernelLayers

    seen = {}
    model = planted("norms")
    with attached(KernelLayers(lambda layer, product, x, out: seen.setdefault(product, x.copy())), model.decoder):
        model.logits(tokens(30))
    for product in ("qkv", "gate_up"):
        assert np.abs(seen[product]).max(axis=0).argmax() == CHANNEL


def test_narrowing_leaves_the_weights_alone():
    """Exact weights of outliers are taken from them afterwards. (It once worked in place on small contiguous ones.)"""
    matrix = np.random.default_rng(1).standard_normal((64, 10)).astype(np.float32)
    before = matrix.copy()
    narrow(matrix, 8, 0)
    assert np.array_equal(matrix, before)
