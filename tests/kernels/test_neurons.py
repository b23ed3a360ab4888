"""Sparse feed-forwards: every kernel against the reference, and what makes streaming exact."""

import numpy as np
import pytest

from edgerun.errors import UnsupportedError, UsageError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels.interface import NEURON_TYPES, Neurons, check_neurons
from edgerun.kernels.reference import ReferenceKernels
from tests.kernels.blocks import random_blocks

FF, COLS = 90, 160


def neurons_of(rng, up_type, down_type, n=FF, room=FF + 7):
    up, down = random_blocks(rng, room, COLS, up_type), random_blocks(rng, room, COLS, down_type)
    ids = np.sort(rng.choice(FF, n, replace=False)).astype(np.int32)
    slots = rng.permutation(room)[:n].astype(np.int32)
    return Neurons(ids, slots, np.ascontiguousarray(np.hstack([up, down])), up_type, down_type, COLS)


def part(neurons, low, high):
    ids, slots = neurons.ids[low:high].copy(), neurons.slots[low:high].copy()
    return Neurons(ids, slots, neurons.memory, neurons.up_type, neurons.down_type, neurons.cols)


@pytest.mark.parametrize("up_type", NEURON_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("down_type", NEURON_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_like_the_reference(simd, up_type, down_type, tokens, activation):
    rng = np.random.default_rng(tokens)
    neurons = neurons_of(rng, up_type, down_type, n=70)
    gate = rng.standard_normal((tokens, FF)).astype(np.float32) - 0.5
    x = rng.standard_normal((tokens, COLS)).astype(np.float32)
    results = []
    for kernels in (simd, ReferenceKernels()):
        h = np.full((tokens, FF), np.nan, np.float32)
        out = np.ones((tokens, COLS), np.float32)
        kernels.neurons_up(gate, kernels.activations(x), neurons, activation, h)
        assert np.isnan(np.delete(h, neurons.ids, axis=1)).all(), "columns of others stay"
        mine = h[:, neurons.ids]
        assert (mine[gate[:, neurons.ids] <= 0] == 0).all()
        kernels.neurons_down(h, neurons, out)
        results.append((mine, out))
    for got, want in zip(*results, strict=True):
        error = 2e-2 if up_type in (GgmlType.Q4_0, GgmlType.Q8_0) else 1e-5  # int8 activations
        assert np.linalg.norm(got - want) <= error * np.linalg.norm(want)


@pytest.mark.parametrize("type", NEURON_TYPES, ids=lambda t: t.name)
def test_the_same_bits_however_it_is_divided(simd, type):
    rng = np.random.default_rng(5)
    neurons = neurons_of(rng, type, type)
    gate = rng.standard_normal((9, FF)).astype(np.float32)
    x = rng.standard_normal((9, COLS)).astype(np.float32)

    def run(rows, pieces, only_fired=False):
        g, h = gate[rows].copy(), np.full((len(gate[rows]), FF), np.nan, np.float32)
        out = np.full((len(g), COLS), 0.25, np.float32)
        acts = simd.activations(x[rows].copy())
        some = neurons
        if only_fired:
            keep = (g[:, neurons.ids] > 0).any(axis=0)
            ids, slots = neurons.ids[keep].copy(), neurons.slots[keep].copy()
            some = Neurons(ids, slots, neurons.memory, type, type, COLS)
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


def test_nothing_fires(simd):
    rng = np.random.default_rng(2)
    neurons = part(neurons_of(rng, GgmlType.Q8_0, GgmlType.Q4_0), 0, 0)
    out = np.ones((1, COLS), np.float32)
    h = np.empty((1, FF), np.float32)
    simd.neurons_up(h, simd.activations(out), neurons, "relu", h)
    simd.neurons_down(h, neurons, out)
    assert (out == 1).all()


def test_wrong_use_is_refused(simd):
    neurons = neurons_of(np.random.default_rng(2), GgmlType.Q8_0, GgmlType.Q8_0)
    gate, x = np.ones((2, FF), np.float32), np.ones((2, COLS), np.float32)
    with pytest.raises(UsageError, match="silu"):
        simd.neurons_up(gate, simd.activations(x), neurons, "silu", gate.copy())
    with pytest.raises(UsageError, match="neurons"):
        simd.neurons_up(gate, simd.activations(x[:, :32].copy()), neurons, "relu", gate.copy())
    with pytest.raises(UsageError, match="columns"):
        simd.neurons_down(gate, neurons, x[:1])
    with pytest.raises(UnsupportedError, match="x: neurons of 160 Q6_K; they may be F32, F16, Q8_0, Q4_0"):
        check_neurons("x", GgmlType.Q6_K, COLS)
