"""Recurrent layers' operations: the equations over a whole text, whatever is cut where, and by whom it is computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.interface import Kernels
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.simd_kernels import SimdKernels
from edgerun.kernels.states import StateLayout, StateRows
from tests.kernels.isas import KERNELS_DIR, LANES

ROWS = 23
CUTS = ([ROWS], [9, 14], [1] * ROWS)
# taps - 1, columns, heads, key_dim, value_dim, key heads: vectors that are whole, cut, and narrower than one
LAYOUTS = [
    (StateLayout(3, 160, 4, 128, 128, 128), 2),
    (StateLayout(3, 77, 6, 7, 21, 192), 3),
    (StateLayout(2, 5, 4, 6, 7, 128), 4),
    (StateLayout(0, 33, 3, 9, 40, 0), 1),
]


@pytest.fixture(scope="module", params=["reference", *LANES], ids=lambda each: getattr(each, "name", each))
def teams(request: pytest.FixtureRequest) -> Iterator[list[Kernels]]:
    """One implementation with one thread and with three."""
    if request.param == "reference":
        yield [ReferenceKernels()]
        return
    cache = KernelCache(request.param, KERNELS_DIR)
    made = [SimdKernels(request.param, cache, threads) for threads in (1, 3)]
    yield list(made)
    for each in made:
        each.close()


def block(layout: StateLayout) -> np.ndarray:
    """A state block of zeros that begins on a cache line, (floats,) f32."""
    memory = np.zeros(layout.end // 4 + 16, np.float32)
    at = -memory.ctypes.data % 64 // 4
    return memory[at : at + layout.end // 4]


def rows_of(layout: StateLayout, *pairs: tuple[np.ndarray, np.ndarray]) -> StateRows:
    """Of a source and a target for each row."""
    return StateRows(np.array([(one.ctypes.data, other.ctypes.data) for one, other in pairs], np.int64), layout)


def in_pieces(layout: StateLayout, ends: list[int], compute, out: np.ndarray) -> tuple[bytes, bytes]:
    """compute(rows, states, out) of a text that begins with nothing, cut into pieces of so many rows: the bits of all
    results and of the state at the end. In the longest piece the state is left in another block on the way."""
    source, low = block(layout), 0
    for count in ends:
        one, two = block(layout), block(layout)
        one[:], two[:] = np.nan, np.nan
        turn = count // 2 if count > 10 else count
        pairs = [(source, one), *[(one, one)] * (turn - 1)]
        pairs += [(one, two), *[(two, two)] * (count - turn - 1)] if turn < count else []
        before = source.tobytes()
        compute(slice(low, low + count), rows_of(layout, *pairs), out[low : low + count])
        assert source.tobytes() == before, "the state that a step begins with stays"
        source, low = pairs[-1][1], low + count
    # what nobody writes: between the parts, and behind them
    end = layout.conv_rows * layout.conv_cols
    first = (layout.matrices_at - layout.conv_at) // 4
    mine = source[layout.at // 4 :]
    matrices = mine[first : first + layout.heads * layout.key_dim * layout.value_dim]
    return out.tobytes(), (mine[:end] if compute.__name__ == "conv" else matrices).tobytes()


@pytest.mark.parametrize(("layout", "key_heads"), LAYOUTS, ids=str)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_convolutions(teams, layout, key_heads, activation):
    rng = np.random.default_rng(1)
    cols, taps = layout.conv_cols, layout.conv_rows + 1
    wide = rng.standard_normal((ROWS, cols + 9)).astype(np.float32)
    u, weight = wide[:, 5 : 5 + cols], rng.standard_normal((cols, taps)).astype(np.float32)
    bias = rng.standard_normal(cols).astype(np.float32) if activation == "silu" else None
    seen = np.concatenate([np.zeros((taps - 1, cols), np.float32), u])
    want = sum(seen[j : j + ROWS].astype(np.float64) * weight[:, j] for j in range(taps))
    want = want if bias is None else want + bias
    want = want / (1 + np.exp(-want)) if activation == "silu" else want
    made = set()
    for kernels in teams:

        def conv(rows, states, out, kernels=kernels):
            kernels.causal_conv(u[rows], weight, bias, states, out, activation)

        for ends in CUTS:
            out = np.full((ROWS, cols), np.nan, np.float32)
            made.add(in_pieces(layout, ends, conv, out))
            np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    assert len(made) == 1
    assert made.pop()[1] == seen[ROWS:].tobytes(), "the tail is the last inputs"


def recurrence(q, k, v, decay, step, rule, heads_of, scale, skip):
    """(T, heads, value_dim) in f64: the equations as they are written."""
    rows, heads, dim = v.shape
    out, m = np.zeros(v.shape), np.zeros((heads, k.shape[2], dim))
    for t in range(rows):
        for j in range(heads):
            key, query = k[t, heads_of[j]].astype(np.float64), q[t, heads_of[j]].astype(np.float64)
            m[j] *= decay[t, j]
            r = (v[t, j] - key @ m[j]) if rule == "delta" else v[t, j].astype(np.float64)
            m[j] += np.outer(key, r * step[t, j])
            out[t, j] = scale * query @ m[j] + (0 if skip is None else skip[j] * v[t, j])
    return out


@pytest.mark.parametrize(("layout", "key_heads"), LAYOUTS, ids=str)
@pytest.mark.parametrize(("rule", "turns"), [("delta", "all"), ("delta", "none"), ("delta", "pairs"), ("sum", "none")])
def test_scans(teams, layout, key_heads, rule, turns):
    rng = np.random.default_rng(2)
    heads, dim, value_dim = layout.heads, layout.key_dim, layout.value_dim
    wide = rng.standard_normal((ROWS, 2 * key_heads * dim + heads * value_dim + 3)).astype(np.float32)
    q, k = (wide[:, i * key_heads * dim :][:, : key_heads * dim].reshape(ROWS, key_heads, dim) for i in (0, 1))
    v = wide[:, -heads * value_dim :].reshape(ROWS, heads, value_dim)
    k /= np.linalg.norm(k, axis=2, keepdims=True)
    decay, step = (rng.random((ROWS, heads)).astype(np.float32) for _ in range(2))
    skip = rng.standard_normal(heads).astype(np.float32) if rule == "sum" else None
    turn = {"all": key_heads, "none": 1, "pairs": 2 - key_heads % 2}[turns]
    each = heads // key_heads
    heads_of = [first + i for first in range(0, key_heads, turn) for _ in range(each) for i in range(turn)]
    if turns == "all":
        assert heads_of == [j % key_heads for j in range(heads)]
    want = recurrence(q, k, v, decay, step, rule, heads_of, 0.7, skip)
    made = set()
    for kernels in teams:

        def scan(rows, states, out, kernels=kernels):
            each = q[rows], k[rows], v[rows], decay[rows], step[rows]
            kernels.scan(*each, states, out, rule=rule, turn=turn, scale=0.7, skip=skip)

        for ends in CUTS:
            out = np.full(v.shape, np.nan, np.float32)
            made.add(in_pieces(layout, ends, scan, out))
            np.testing.assert_allclose(out, want, rtol=1e-4, atol=2e-5)
    assert len(made) == 1


def test_rows_of_many_sequences(teams):
    """Each as if it were alone; rows of nobody repeat the last one's result."""
    layout, rng = LAYOUTS[1][0], np.random.default_rng(3)
    counts = [1, 4, 1, 7]
    rows = sum(counts)
    u, weight = rng.standard_normal((rows + 2, 77)).astype(np.float32), rng.standard_normal((77, 4)).astype(np.float32)
    q, k = rng.standard_normal((2, rows + 2, 3, 7)).astype(np.float32) / 3
    v, decay = rng.standard_normal((rows + 2, 6, 21)).astype(np.float32), np.full((rows + 2, 6), 0.9, np.float32)
    starts = [block(layout) for _ in counts]
    for each in starts:
        each[:] = rng.standard_normal(each.size)

    def compute(kernels, which, some, extra):
        ends = [block(layout) for _ in which]
        pairs = []
        for t, end in zip(which, ends, strict=True):
            pairs += [(starts[t], end), *[(end, end)] * (counts[t] - 1)]
        table = np.concatenate([rows_of(layout, *pairs).table, np.zeros((extra, 2), np.int64)])
        states, n = StateRows(table, layout), len(table)
        mixed, out = np.full((n, 77), 7, np.float32), np.full((n, 6, 21), 7, np.float32)
        kernels.causal_conv(u[some], weight, None, states, mixed, "silu")
        step = decay[some] / 2
        kernels.scan(q[some], k[some], v[some], decay[some], step, states, out, rule="delta", turn=k.shape[1])
        return mixed, out, ends

    for kernels in teams:
        mixed, out, ends = compute(kernels, range(4), slice(0, rows + 2), 2)
        assert (mixed[rows:] == mixed[rows - 1]).all() and (out[rows:] == out[rows - 1]).all()
        low = 0
        for t, count in enumerate(counts):
            alone = compute(kernels, [t], slice(low, low + count), 0)
            assert mixed[low : low + count].tobytes() == alone[0].tobytes()
            assert out[low : low + count].tobytes() == alone[1].tobytes()
            assert ends[t].tobytes() == alone[2][0].tobytes()
            low += count


def test_heads_steps_and_gates(teams):
    """Against the equations in f64, far out too; every row as if it were alone."""
    rng = np.random.default_rng(4)
    wide = 4 * rng.standard_normal((9, 400)).astype(np.float32)
    wide[0, :4], wide[1, 200:204] = (-200, 200, 0, -17), (90, -90, 0, 30)
    weight, big = rng.standard_normal(77).astype(np.float32), rng.standard_normal((4, 77)).astype(np.float32)
    bias, a = rng.standard_normal(6).astype(np.float32), -rng.random(6).astype(np.float32)
    x, gate = wide[:, :308].astype(np.float64).reshape(9, 4, 77), wide[:, 80:388].astype(np.float64).reshape(9, 4, 77)
    silu = gate / (1 + np.exp(-gate))
    dt = wide.astype(np.float64)[:, :12].reshape(9, 3, 4)
    soft = np.logaddexp(0, dt[:, :, :2].reshape(9, 6) + bias)
    want = [
        x / np.sqrt((x**2).sum(axis=2, keepdims=True) + 0.3),
        np.exp(soft * a),
        1 / (1 + np.exp(-dt[:, :, 2:].reshape(9, 6))),
        soft,
        x / np.sqrt((x**2).mean(axis=2, keepdims=True) + 0.1) * weight * silu,
        (x * silu) / np.sqrt(((x * silu) ** 2).mean(axis=2, keepdims=True) + 0.1) * big,
        x * silu,
    ]

    def compute(kernels, rows):
        part = wide[rows].copy()
        heads = part[:, :308].reshape(-1, 4, 77)
        mine, gates = np.ascontiguousarray(heads), part[:, 80:388]
        both = part[:, :12].reshape(-1, 3, 4)
        decay, step, plain = np.empty((3, len(part), 6), np.float32)
        kernels.scan_steps(both[:, :, :2], both[:, :, 2:], bias, a, decay, step)
        kernels.scan_steps(both[:, :, :2], None, bias, a, decay, plain)
        normed = [np.full_like(mine, np.nan) for _ in range(3)]
        kernels.gated_norm(mine, gates, weight, 0.1, normed[0], gate_first=False)
        kernels.gated_norm(mine, gates, big, 0.1, normed[1], gate_first=True)
        kernels.gated_norm(mine, gates, None, 0.1, normed[2], gate_first=True)
        kernels.unit_heads(heads, 0.3)
        return [heads, decay, step, plain, *normed]

    for kernels in teams:
        whole = compute(kernels, slice(0, 9))
        for got, wanted in zip(whole, want, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-30 if got is whole[3] else 1e-6)
        for row in range(9):
            for got, one in zip(whole, compute(kernels, slice(row, row + 1)), strict=True):
                assert got[row : row + 1].tobytes() == one.tobytes()


def test_what_is_no_number_stays_in_its_head(teams):
    layout, rng = StateLayout(0, 0, 4, 16, 32, 0), np.random.default_rng(5)
    q, k = rng.standard_normal((2, 3, 4, 16)).astype(np.float32)
    v, half = rng.standard_normal((3, 4, 32)).astype(np.float32), np.full((3, 4), 0.5, np.float32)
    v[1, 2] = np.inf
    for kernels in teams:
        for rule in ("delta", "sum"):
            out, begin, end = np.zeros((3, 4, 32), np.float32), block(layout), block(layout)
            states = rows_of(layout, (begin, end), (end, end), (end, end))
            kernels.scan(q, k, v, half, half, states, out, rule=rule, turn=4)
            assert np.isfinite(out[:, [0, 1, 3]]).all() and np.isfinite(out[0]).all()
            assert not np.isfinite(out[1:, 2]).any()
        soft, decay = np.array([[[np.nan, 1e30, -1e30]]], np.float32), np.empty((1, 3), np.float32)
        step = np.empty((1, 3), np.float32)
        kernels.scan_steps(soft, None, np.zeros(3, np.float32), -np.ones(3, np.float32), decay, step)
        assert np.isnan([decay[0, 0], step[0, 0]]).all()
        assert decay[0, 1:].tolist() == [0, 1] and step[0, 1:].tolist() == [np.float32(1e30), 0]


def test_what_does_not_fit_is_refused(teams):
    layout = LAYOUTS[1][0]
    u, weight = np.zeros((2, 77), np.float32), np.zeros((77, 4), np.float32)
    q, v, half = np.zeros((2, 3, 7), np.float32), np.zeros((2, 6, 21), np.float32), np.zeros((2, 6), np.float32)
    good = rows_of(layout, *[(block(layout), block(layout))] * 2)
    gone = StateRows(np.array([(0, good.table[0, 1])] * 2, np.int64), layout)
    for kernels in teams:
        for states, x, w, kind in ((gone, u, weight, "none"), (good, u[:1], weight, "none"), (good, u, weight, "gelu")):
            with pytest.raises(UsageError):
                kernels.causal_conv(x, w, None, states, np.empty_like(x), kind)
        with pytest.raises(UsageError, match="are kept"):
            kernels.causal_conv(u, weight[:, :3], None, good, u, "none")
        for change in (
            {"rule": "both"},
            {"turn": 2},
            {"turn": 0},
            {"k": q[:, :2]},
            {"step": half[:1]},
            {"v": v[:, :5]},
            {"states": gone},
        ):
            given = {
                "q": q,
                "k": q,
                "v": v,
                "decay": half,
                "step": half,
                "states": good,
                "rule": "sum",
                "turn": 1,
            } | change
            with pytest.raises(UsageError):
                kernels.scan(**given, out=np.empty_like(v))
        with pytest.raises(UsageError, match="in one piece"):
            kernels.unit_heads(v[:, :, ::2], 0.1)
