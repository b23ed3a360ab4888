"""Sparse feed-forwards: every kernel against the reference, and what makes streaming exact."""

import numpy as np
import pytest

from edgerun.errors import UnsupportedError, UsageError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import layout
from edgerun.kernels.interface import NEURON_TYPES, Neurons, check_neurons
from edgerun.kernels.layout import ROW_TYPES
from edgerun.kernels.reference import ReferenceKernels
from tests.kernels.blocks import random_blocks
from tests.kernels.isas import SOME

SETS = SOME  # of every type
FF = 90
PACKED = [each for each in NEURON_TYPES if each not in ROW_TYPES]
PAIRS = [(up, down) for up in ROW_TYPES for down in ROW_TYPES]
PAIRS += [(each, each) for each in PACKED] + [(GgmlType.Q4_K, GgmlType.Q8_0), (GgmlType.F16, GgmlType.Q6_K)]


def cols_of(*types):
    """As few columns as rows of these types can have, so that no slice of them is whole."""
    return 160 if all(160 % each.block_size == 0 for each in types) else 256


def neurons_of(rng, up_type, down_type, n=FF, room=FF + 7):
    cols = cols_of(up_type, down_type)
    up, down = random_blocks(rng, room, cols, up_type), random_blocks(rng, room, cols, down_type)
    ids = np.sort(rng.choice(FF, n, replace=False)).astype(np.int32)
    slots = rng.permutation(room)[:n].astype(np.int32)
    return Neurons(ids, slots, np.ascontiguousarray(np.hstack([up, down])), up_type, down_type, cols)


def part(neurons, low, high):
    ids, slots = neurons.ids[low:high].copy(), neurons.slots[low:high].copy()
    return Neurons(ids, slots, neurons.memory, neurons.up_type, neurons.down_type, neurons.cols)


@pytest.mark.parametrize(("up_type", "down_type"), PAIRS, ids=lambda t: t.name)
@pytest.mark.parametrize(("tokens", "activation"), [(1, "relu"), (3, "relu2"), (70, "relu")])
def test_like_the_reference(simd, up_type, down_type, tokens, activation):
    rng = np.random.default_rng(tokens)
    neurons = neurons_of(rng, up_type, down_type, n=70)
    gate = rng.standard_normal((tokens, FF)).astype(np.float32) - 0.5
    x = rng.standard_normal((tokens, neurons.cols)).astype(np.float32)
    results = []
    for kernels in (simd, ReferenceKernels()):
        h = np.full((tokens, FF), np.nan, np.float32)
        out = np.ones((tokens, neurons.cols), np.float32)
        kernels.neurons_up(gate, kernels.activations(x), neurons, activation, h)
        assert np.isnan(np.delete(h, neurons.ids, axis=1)).all(), "columns of others stay"
        mine = h[:, neurons.ids]
        assert (mine[gate[:, neurons.ids] <= 0] == 0).all()
        kernels.neurons_down(h, neurons, out)
        results.append((mine, out))
    for got, want in zip(*results, strict=True):
        error = 4e-2 if up_type.block_size > 1 else 1e-5  # int8 activations, and minima that cancel what they add
        assert np.linalg.norm(got - want) <= error * np.linalg.norm(want)


@pytest.mark.parametrize("type", PACKED, ids=lambda t: t.name)
def test_a_neuron_is_a_row_of_a_product(simd, type):
    """Up of a type that is packed has the bits of the dense product."""
    rng = np.random.default_rng(3)
    neurons = neurons_of(rng, type, GgmlType.F16)
    x, gate = rng.standard_normal((4, neurons.cols)).astype(np.float32), np.ones((4, FF), np.float32)
    h, want = np.zeros((2, 4, FF), np.float32)
    simd.neurons_up(gate, simd.activations(x), neurons, "relu", h)
    rows = np.ascontiguousarray(neurons.memory[neurons.slots, : type.row_bytes(neurons.cols)])
    simd.matmul(simd.pack(rows, type, neurons.cols), simd.activations(x), want)
    assert np.array_equal(h[:, neurons.ids].view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("type", NEURON_TYPES, ids=lambda t: t.name)
def test_the_same_bits_however_it_is_divided(simd, type, monkeypatch):
    rng = np.random.default_rng(5)
    neurons = neurons_of(rng, type, type)
    gate = rng.standard_normal((9, FF)).astype(np.float32)
    x = rng.standard_normal((9, neurons.cols)).astype(np.float32)

    def run(rows, pieces, only_fired=False):
        g, h = gate[rows].copy(), np.full((len(gate[rows]), FF), np.nan, np.float32)
        out = np.full((len(g), neurons.cols), 0.25, np.float32)
        acts = simd.activations(x[rows].copy())
        some = neurons
        if only_fired:
            keep = (g[:, neurons.ids] > 0).any(axis=0)
            ids, slots = neurons.ids[keep].copy(), neurons.slots[keep].copy()
            some = Neurons(ids, slots, neurons.memory, type, type, neurons.cols)
        cuts = [len(some.ids) * i // pieces for i in range(pieces + 1)]
        parts = [part(some, low, high) for low, high in zip(cuts, cuts[1:], strict=False)]
        for each in reversed(parts):
            simd.neurons_up(g, acts, each, "relu", h)
        for each in parts:
            simd.neurons_down(h, each, out)
        return out

    whole = run(slice(None), 1)
    assert np.array_equal(whole, run(slice(None), 4))
    assert np.array_equal(whole, run(slice(None), 3, only_fired=True))
    for t in range(9):
        assert np.array_equal(whole[t : t + 1], run(slice(t, t + 1), 2, only_fired=True))
    monkeypatch.setattr(layout, "NEURON_FLOATS_BYTES", 1)  # one group of rows after the other
    assert np.array_equal(whole, run(slice(None), 1))
    assert np.array_equal(whole[4:5], run(slice(4, 5), 3))


def test_scratch_is_bounded_and_never_nothing():
    for cols in (32, 4096, 1 << 22):
        for tokens in (1, 4096, 1 << 20):
            for lanes in (8, 16):
                n = layout.neurons_at_once(cols, tokens, lanes)
                assert n % lanes == 0
                assert n == lanes or 4 * n * max(cols, tokens) <= layout.NEURON_FLOATS_BYTES
    assert layout.neuron_scratch_bytes(ROW_TYPES, 4096) == 0
    assert 4 << 20 < layout.neuron_scratch_bytes([GgmlType.Q4_0, GgmlType.Q4_K], 4096) < 8 << 20


@pytest.mark.parametrize("type", [GgmlType.Q4_0, GgmlType.Q5_K], ids=lambda t: t.name)
def test_nothing_fires(simd, type):
    rng = np.random.default_rng(2)
    neurons = part(neurons_of(rng, type, type), 0, 0)
    out = np.ones((1, neurons.cols), np.float32)
    h = np.empty((1, FF), np.float32)
    simd.neurons_up(h, simd.activations(out), neurons, "relu", h)
    simd.neurons_down(h, neurons, out)
    assert (out == 1).all()


@pytest.mark.parametrize("type", [GgmlType.Q4_K, GgmlType.Q5_1], ids=lambda t: t.name)
def test_a_silent_neuron_is_nothing_whatever_it_would_say(simd, type):
    """Products that are no numbers do not pass a gate that is shut."""
    rng = np.random.default_rng(2)
    neurons = neurons_of(rng, type, type)
    neurons.memory[:, :4] = np.array([np.inf, np.inf], np.float16).view(np.uint8)  # both scales
    gate, x = -np.ones((2, FF), np.float32), np.ones((2, neurons.cols), np.float32)
    h, out = np.full((2, FF), np.nan, np.float32), np.zeros((2, neurons.cols), np.float32)
    simd.neurons_up(gate, simd.activations(x), neurons, "relu", h)
    simd.neurons_down(h, neurons, out)
    assert (h[:, neurons.ids] == 0).all()
    assert (out == 0).all()


@pytest.mark.parametrize("type", [GgmlType.Q8_0, GgmlType.Q4_K], ids=lambda t: t.name)
def test_wrong_use_is_refused(simd, type):
    neurons = neurons_of(np.random.default_rng(2), type, type)
    gate, x = np.ones((2, FF), np.float32), np.ones((2, neurons.cols), np.float32)
    with pytest.raises(UsageError, match="silu"):
        simd.neurons_up(gate, simd.activations(x), neurons, "silu", gate.copy())
    with pytest.raises(UsageError, match="neurons"):
        simd.neurons_up(gate, simd.activations(x[:, :32].copy()), neurons, "relu", gate.copy())
    with pytest.raises(UsageError, match="columns"):
        simd.neurons_down(gate, neurons, x[:1])


def test_what_neurons_cannot_be():
    with pytest.raises(UnsupportedError, match="x: neurons of 160 Q6_K; of this type they have a multiple of 256"):
        check_neurons("x", GgmlType.Q6_K, 160)
    with pytest.raises(UnsupportedError, match="x: neurons of 48 F16; of this type they have a multiple of 32"):
        check_neurons("x", GgmlType.F16, 48)
    with pytest.raises(UnsupportedError, match="x: there are no neurons of F64; they may be F32, F16, BF16"):
        check_neurons("x", GgmlType.F64, 256)
    for type in NEURON_TYPES:
        check_neurons("x", type, 256)
