"""A row's bits depend on nothing but the row: whatever is computed with it, on however many threads, after whatever
stood in memory. One test for every operation in which rows meet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgerun.kernels.attention_layout import KEYS, KEYS_PER_PAGE, first_seen
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.interface import Kernels
from edgerun.kernels.isa import Isa
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.routing import Routing
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.blocks import random_blocks
from tests.kernels.isas import IMPLEMENTATIONS, KERNELS_DIR, LANES
from tests.kernels.paged import Paged

SHAPES = {"max_examples": 40, "deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(scope="module", params=["reference", *LANES], ids=lambda each: getattr(each, "name", each))
def teams(request: pytest.FixtureRequest) -> Iterator[list[Kernels]]:
    """One implementation with one thread and with three."""
    yield from _teams(request.param)


@pytest.fixture(scope="module", params=["reference", *IMPLEMENTATIONS], ids=lambda each: getattr(each, "name", each))
def multiplying(request: pytest.FixtureRequest) -> Iterator[list[Kernels]]:
    """As `teams`, of every set: products differ in more than their lanes."""
    yield from _teams(request.param)


def _teams(isa: Isa | str) -> Iterator[list[Kernels]]:
    if not isinstance(isa, Isa):
        yield [ReferenceKernels()]
        return
    cache = KernelCache(isa, KERNELS_DIR)
    made = [SimdKernels(isa, cache, threads) for threads in (1, 3)]
    yield list(made)
    for each in made:
        each.close()


@st.composite
def pieces(draw: st.DrawFn, tokens: int) -> list[int]:
    """Where `tokens` rows are cut: all of the ends, ascending."""
    if draw(st.booleans()):
        return list(range(1, tokens + 1))
    cuts = draw(st.sets(st.integers(1, tokens - 1), max_size=6)) if tokens > 1 else set()
    return sorted(cuts | {tokens})


@st.composite
def attentions(draw: st.DrawFn) -> dict:
    """Shapes of attention, with starts and ends about the edges of blocks and chunks."""
    edge = draw(st.sampled_from([0, KEYS, 2 * KEYS, KEYS_PER_PAGE, KEYS_PER_PAGE + KEYS, 2 * KEYS_PER_PAGE]))
    start = max(0, edge + draw(st.integers(-40, 40)))
    tokens = draw(st.integers(1, 70))
    dims = st.one_of(st.sampled_from([16, 48, 64, 80, 96, 128, 256]), st.integers(1, 70))
    return {
        "kv_heads": draw(st.integers(1, 3)),
        "group": draw(st.integers(1, 9)),
        "dim": draw(dims),
        "dim_v": draw(dims),
        "start": start,
        "tokens": tokens,
        "ends": draw(pieces(tokens)),
        "window": draw(st.one_of(st.just(0), st.integers(1, 300))),
        "chunked": draw(st.booleans()),
        "sinks": draw(st.booleans()),
        "softcap": draw(st.sampled_from([0.0, 0.0, 20.0])),
        "sharpness": draw(st.sampled_from([0.1, 2.0, 60.0])),
        "seed": draw(st.integers(0, 1 << 16)),
    }


def attend(kernels: Kernels, case: dict, q: np.ndarray, k: np.ndarray, v: np.ndarray, low: int, high: int):
    """Rows low .. high - 1, in pages whose positions after them were never written."""
    end = case["start"] + high
    first = first_seen(case["start"] + low + 1, case["window"], case["chunked"]) // KEYS_PER_PAGE * KEYS_PER_PAGE
    paged = Paged(case["kv_heads"], case["dim"], case["dim_v"], end + draw_room(case), seed=low, skipped=first)
    paged.write(k[first:end], v[first:end], first)
    out = np.full((high - low, q.shape[1], case["dim_v"]), np.nan, np.float32)
    kernels.attention(
        q[low:high].copy(),
        [paged.span(case["start"] + low, high - low)],
        out,
        scale=case["dim"] ** -0.5,
        softcap=case["softcap"],
        window=case["window"],
        chunked=case["chunked"],
        sinks=np.linspace(-9, 9, q.shape[1], dtype=np.float32) if case["sinks"] else None,
    )
    return out


def draw_room(case: dict) -> int:
    """More pages or fewer."""
    return case["seed"] % 3 * KEYS_PER_PAGE


@settings(**SHAPES)
@given(case=attentions())
@example(
    case={
        "kv_heads": 1,
        "group": 2,
        "dim": 16,
        "dim_v": 16,
        "start": 2 * KEYS_PER_PAGE - 30,
        "tokens": 60,
        "ends": [1, 30, 31, 60],
        "window": KEYS_PER_PAGE + 10,
        "chunked": False,
        "sinks": True,
        "softcap": 0.0,
        "sharpness": 2.0,
        "seed": 1,
    }
)
def test_attention(teams, case):
    rng = np.random.default_rng(case["seed"])
    heads, end = case["kv_heads"] * case["group"], case["start"] + case["tokens"]
    q = case["sharpness"] * rng.standard_normal((case["tokens"], heads, case["dim"])).astype(np.float32)
    k = rng.standard_normal((end, case["kv_heads"], case["dim"])).astype(np.float32)
    v = rng.standard_normal((end, case["kv_heads"], case["dim_v"])).astype(np.float32)
    whole = attend(teams[0], case, q, k, v, 0, case["tokens"])
    assert np.isfinite(whole).all()
    for kernels in teams:
        low = 0
        for high in case["ends"]:
            part = attend(kernels, case, q, k, v, low, high)
            assert part.tobytes() == whole[low:high].tobytes(), (low, high)
            low = high


def check(compute, x: np.ndarray, ends: list[int]) -> None:
    """compute(rows (T, ..), first) -> (T, ..) of all rows at once is what it is of pieces."""
    whole = compute(x.copy(), 0)
    low = 0
    for high in ends:
        assert compute(x[low:high].copy(), low).tobytes() == whole[low:high].tobytes(), (low, high)
        low = high


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """(T, cols) f32 and where to cut it."""
    tokens, cols = draw(st.integers(1, 40)), draw(st.integers(1, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    return 3 * rng.standard_normal((tokens, cols)).astype(np.float32), draw(pieces(tokens))


@settings(**SHAPES)
@given(given_rows=rows(), activation=st.sampled_from(["silu", "gelu", "relu", "relu2", "oai"]))
def test_norms_and_gates(teams, given_rows, activation):
    x, ends = given_rows
    weight, up = np.linspace(0.5, 2, x.shape[1]).astype(np.float32), np.roll(x, 1, axis=0)
    for kernels in teams:

        def norm(part, first, kernels=kernels):
            kernels.rms_norm(part, weight, 1e-5, part)
            return part

        def layer_norm(part, first, kernels=kernels):
            kernels.layer_norm(part, weight, weight, 1e-5, part)
            return part

        def gate(part, first, kernels=kernels):
            kernels.gated(part, up[first : first + len(part)].copy(), activation, part)
            return part

        check(norm, x, ends)
        check(layer_norm, x, ends)
        check(gate, x, ends)


@settings(**SHAPES)
@given(given_rows=rows(), k=st.integers(1, 5))
def test_sums_of_experts(teams, given_rows, k):
    x, ends = given_rows
    weights = np.random.default_rng(len(x)).random((len(x), k)).astype(np.float32)
    parts = np.stack([np.roll(x, shift, axis=1) for shift in range(k)], axis=1)  # (T, k, d)
    for kernels in teams:

        def combine(part, first, kernels=kernels):
            some = slice(first, first + len(part))
            kernels.combine(parts[some].reshape(-1, x.shape[1]).copy(), weights[some].copy(), part, add=True)
            return part

        check(combine, x, ends)


@settings(**SHAPES)
@given(
    given_rows=rows(),
    kind=st.sampled_from(["softmax", "softmax_topk", "sigmoid", "sqrt_softplus"]),
    groups=st.sampled_from([1, 2]),
    renormalise=st.booleans(),
    used=st.integers(1, 12),
)
def test_routers(teams, given_rows, kind, groups, renormalise, used):
    x, ends = given_rows
    groups = groups if x.shape[1] % groups == 0 else 1
    routing = Routing(kind, min(used, x.shape[1] // groups), renormalise, 1.7, groups, 1)
    bias = np.linspace(0, 0.5, x.shape[1]).astype(np.float32)
    for kernels in teams:

        def route(part, first, kernels=kernels):
            ids, weights = (np.empty((len(part), routing.used), kind) for kind in (np.int32, np.float32))
            kernels.route(part, routing, ids, weights, bias)
            return np.concatenate([ids.astype(np.float64), weights], axis=1)

        check(route, x, ends)


@settings(**SHAPES)
@given(given_rows=rows(), kind=st.sampled_from(["norm", "neox"]), heads=st.integers(1, 4))
def test_rotation(teams, given_rows, kind, heads):
    x, ends = given_rows
    half = (x.shape[1] + 1) // 2
    x = np.repeat(np.pad(x, ((0, 0), (0, x.shape[1] % 2)))[:, None], heads, axis=1)  # (T, heads, head_dim)
    angles = np.random.default_rng(0).random((len(x), half)).astype(np.float32) * 100
    cos, sin = np.cos(angles), np.sin(angles)
    for kernels in teams:

        def rope(part, first, kernels=kernels):
            kernels.rope(part, cos[first : first + len(part)], sin[first : first + len(part)], kind)
            return part

        check(rope, x, ends)


@pytest.mark.parametrize("type", FORMATS, ids=lambda type: type.name)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_products(multiplying, type, data):
    tokens, n, blocks = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 700)), data.draw(st.integers(1, 3))
    cols = blocks * 256 if type.block_size > 1 else data.draw(st.integers(1, 300))
    rng = np.random.default_rng(n)
    x, raw = rng.standard_normal((tokens, cols)).astype(np.float32), random_blocks(rng, n, cols, type)
    ends, add = data.draw(pieces(tokens)), data.draw(st.booleans())
    for kernels in multiplying:
        w = kernels.pack(raw, type, cols)

        def product(part, first, kernels=kernels, w=w):
            out = np.full((len(part), n), 0.5, np.float32)
            kernels.matmul(w, kernels.activations(part), out, add=add)
            return out

        check(product, x, ends)


def test_writing_keys_and_values(teams):
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((70, 3, 20)).astype(np.float32), rng.standard_normal((70, 3, 12)).astype(np.float32)
    for kernels in teams:
        made = []
        for ends in ([70], [1, 2, 40, 70], list(range(1, 71))):
            paged = Paged(3, 20, 12, 128)
            low = 0
            for high in ends:
                kernels.kv_write([paged.span(50 + low, high - low)], k[low:high].copy(), v[low:high].copy())
                low = high
            made.append(paged.bytes())
        assert len(set(made)) == 1
