"""Every compiled operation once, against the numpy reference: small inputs that reach all paths of every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import dequantize
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.interface import NEURON_TYPES, Activation, GateKind, Kernels, Neurons
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.routing import Routing
from edgerun.kernels.simd_kernels import SimdKernels
from edgerun.kernels.states import StateLayout, StateRows
from edgerun.kernels.stream_weights import StreamWeights
from tests.kernels.blocks import random_blocks
from tests.kernels.paged import Paged

_F32 = np.float32
_INT8 = 2e-2  # of activations in the products that round them


@dataclass(frozen=True)
class Operation:
    """`run(kernels)` gives what is compared; `most_error`: norm of the difference, as a part of the norm of `want`."""

    name: str
    run: Callable[[Kernels], np.ndarray]
    want: np.ndarray
    most_error: float

    def is_right(self, kernels: Kernels) -> bool:
        """False for NaN too."""
        got = self.run(kernels)
        return bool(np.linalg.norm(got - self.want) <= self.most_error * np.linalg.norm(self.want))


def product_operations(types: tuple[GgmlType, ...]) -> list[Operation]:
    """Packing and products with 1, 5 and 21 rows, of enough weight rows that many tokens go through spread slabs."""
    return [_product(type, tokens) for type in types for tokens in (1, 5, 21)]


def all_operations() -> list[Operation]:
    """Of all kernels but those of the thread pool, which all others run in."""
    rng = np.random.default_rng(0)
    found = product_operations(tuple(FORMATS))
    gate, up = 4 * rng.standard_normal((2, 9, 77)).astype(_F32)
    found += [_written(f"gated {name}", gate, partial(_gated, up=up, name=name), 1e-5) for name in _GATES]
    x, weight = rng.standard_normal((9, 77)).astype(_F32), rng.standard_normal(77).astype(_F32)
    found.append(_written("rms_norm", x, lambda k, out: k.rms_norm(x, weight, 1e-5, out), 1e-5))
    found.append(_written("layer_norm", x, lambda k, out: k.layer_norm(x, weight, weight, 1e-5, out), 1e-5))
    ids, table = np.arange(9, dtype=np.int32)[::-1].copy(), rng.standard_normal((9, 77)).astype(_F32)
    found.append(_written("affine", x, lambda k, out: k.affine(out, ids, weight, table), 1e-6))
    wide = rng.standard_normal((9, 160)).astype(_F32)[:, 3:80]
    found.append(_written("rms_norm of rows apart", x, lambda k, out: k.rms_norm(wide, weight, 1e-5, out), 1e-5))
    for kind in ("sigmoid", "softplus"):
        found.append(_written(f"head_gate {kind}", x, partial(_head_gate, gate=9 * wide, kind=kind), 1e-5))
        found.append(
            _written(f"head_gate {kind} of one", x, partial(_head_gate, gate=9 * wide[:, :1], kind=kind), 1e-5)
        )
    found.append(_written("add", x, lambda k, out: k.add(out, x), 1e-6))
    turned, angle = rng.standard_normal((5, 3, 20)).astype(_F32), rng.random((5, 4)).astype(_F32)
    cos, sin = np.cos(angle), np.sin(angle)
    found.append(_written("rope", turned, lambda k, out: k.rope(out, cos, sin, "neox"), 1e-5))
    parts, shares = rng.standard_normal((27, 77)).astype(_F32), rng.random((9, 3)).astype(_F32)
    found.append(_written("combine", x, lambda k, out: k.combine(parts, shares, out, add=True), 1e-5))
    found += [_route(routing) for routing in _ROUTINGS]
    found.append(_written("weigh", x[:, :1], lambda k, out: k.weigh(x, weight, out), 1e-5))
    found += [_attention(tokens) for tokens in (1, 40)] + [_attention(1, "q8_0", "q4_0")]
    found += [_attention(tokens, window=77, chunked=True, sinks=True) for tokens in (1, 40)]
    found += [_recurrence(tokens) for tokens in (1, 9)]
    found += [_streams(tokens) for tokens in (1, 9)]
    found += [_neurons(up, down) for up, down in zip(NEURON_TYPES, NEURON_TYPES[::-1], strict=True)]
    return found


_GATES: tuple[Activation, ...] = ("silu", "gelu", "relu", "relu2", "oai")
_ROUTINGS = (
    Routing("softmax", 8),
    Routing("softmax_topk", 3, renormalise=False, scale=1.5),
    Routing("sigmoid", 4, groups=7, groups_used=2, scale=2.5),
    Routing("sqrt_softplus", 77),
)
_reference = ReferenceKernels()


def _route(routing: Routing) -> Operation:
    """ids, then weights, of 9 rows and 77 experts; a bias where there are groups."""
    rng = np.random.default_rng(routing.used)
    logits, bias = 3 * rng.standard_normal((9, 77)).astype(_F32), rng.standard_normal(77).astype(_F32)
    logits[0] = logits[0, 0]  # equals: the first are chosen

    def run(kernels: Kernels) -> np.ndarray:
        ids, weights = np.empty((9, routing.used), np.int32), np.empty((9, routing.used), _F32)
        kernels.route(logits, routing, ids, weights, bias if routing.groups > 1 else None)
        return np.concatenate([100 * ids, weights / weights.max()], axis=1)

    return Operation(f"route {routing.kind}", run, run(_reference), 1e-6)


def _gated(kernels: Kernels, gate: np.ndarray, *, up: np.ndarray, name: Activation) -> None:
    kernels.gated(gate, up, name, gate)


def _head_gate(kernels: Kernels, x: np.ndarray, *, gate: np.ndarray, kind: GateKind) -> None:
    kernels.head_gate(x, gate, kind)


def _written(name: str, start: np.ndarray, write: Callable[[Kernels, np.ndarray], None], error: float) -> Operation:
    """An operation that writes into a copy of `start`."""

    def run(kernels: Kernels) -> np.ndarray:
        out = start.copy()
        write(kernels, out)
        return out

    return Operation(name, run, run(_reference), error)


def _product(type: GgmlType, tokens: int) -> Operation:
    rng = np.random.default_rng(int(type) + tokens)
    quantised = type.block_size > 1
    rows, cols = (16 * 24 * 8 - 3, 256) if quantised else (37, 100)
    raw = random_blocks(rng, rows, cols, type)
    x = rng.standard_normal((tokens, cols)).astype(_F32)
    want = x @ dequantize(raw, type).astype(_F32).T

    def run(kernels: Kernels) -> np.ndarray:
        out = np.full((tokens, rows), np.nan, _F32)
        kernels.matmul(kernels.pack(raw, type, cols), kernels.activations(x), out)
        return out

    return Operation(f"{type.name} x {tokens}", run, want, _INT8 if quantised else 1e-5)


def _attention(
    tokens: int, keys: str = "f16", values: str = "f16", window: int = 0, chunked: bool = False, sinks: bool = False
) -> Operation:
    """Of positions in pages that the operation before this one writes: `kv_write` is checked with it."""
    rng = np.random.default_rng(tokens)
    scores = 3 * rng.standard_normal(8).astype(_F32) if sinks else None
    q, new = rng.standard_normal((tokens, 8, 64)).astype(_F32), rng.standard_normal((2, 330, 2, 64)).astype(_F32)

    def run(kernels: Kernels) -> np.ndarray:
        paged = Paged(2, 64, 64, 384, keys=KV_FORMATS[keys], values=KV_FORMATS[values])
        kernels.kv_write([paged.span(0, 330)], new[0], new[1])
        out = np.empty((tokens, 8, 64), _F32)
        kernels.attention(
            q, [paged.span(330 - tokens, tokens)], out, scale=0.125, window=window, chunked=chunked, sinks=scores
        )
        return out

    return Operation(f"attention of {tokens}, {keys}", run, run(_reference), 1e-4)


def _streams(tokens: int) -> Operation:
    """All that is done with several streams, one after another."""
    rng = np.random.default_rng(tokens)
    start, result = rng.standard_normal((tokens, 4, 77)).astype(_F32), rng.standard_normal((tokens, 77)).astype(_F32)
    asked, coefficients = rng.standard_normal((tokens, 4)).astype(_F32), rng.standard_normal((16, 4)).astype(_F32)

    def run(kernels: Kernels) -> np.ndarray:
        x, mixed, first = start.copy(), np.empty_like(start), np.empty_like(result)
        mixing = StreamWeights(asked.copy(), coefficients, 0.5, np.empty((tokens, 16), _F32))
        kernels.mix_streams(x, mixing, mixed)
        shares = StreamWeights(asked.copy(), coefficients[:4], 0.5, np.empty((tokens, 4), _F32))
        kernels.correct_streams(mixed, result, shares, x, result[0].copy(), first)
        kernels.match_norms(x[:, 1:], first)
        kernels.above_mean(first, 0.3)
        return np.concatenate([x.reshape(tokens, -1), first], axis=1)

    return Operation(f"streams of {tokens}", run, run(_reference), 1e-5)


def _recurrence(tokens: int) -> Operation:
    """All that a recurrent layer is made of, one after another."""
    rng = np.random.default_rng(tokens)
    layout = StateLayout(3, 134, 6, 7, 20, 0)
    u, weight = rng.standard_normal((tokens, 134)).astype(_F32), rng.standard_normal((134, 4)).astype(_F32)
    x, a = rng.standard_normal((tokens, 1, 6)).astype(_F32), -rng.random(6).astype(_F32)
    wide, eighth = rng.standard_normal((tokens, 120)).astype(_F32), rng.standard_normal(20).astype(_F32)

    def run(kernels: Kernels) -> np.ndarray:
        blocks = np.zeros((2, layout.end // 4), _F32)
        source, target = (each.ctypes.data for each in blocks)
        states = StateRows(np.array([(source, target), *[(target, target)] * (tokens - 1)], np.int64), layout)
        mixed, (decay, step), out = np.empty_like(u), np.empty((2, tokens, 6), _F32), np.empty((tokens, 6, 20), _F32)
        kernels.causal_conv(u, weight, None, states, mixed, "silu")
        q, k, v = (mixed[:, i : i + n].reshape(tokens, -1, m) for i, n, m in ((0, 7, 7), (7, 7, 7), (14, 120, 20)))
        kernels.unit_heads(mixed[:, :14].reshape(tokens, 2, 7), 1e-6)
        kernels.scan_steps(x, x, a, a, decay, step)
        kernels.scan(q, k, v, decay, step, states, out, rule="delta", turn=1)
        kernels.gated_norm(out, wide, eighth, 1e-5, out, gate_first=False)
        return out

    return Operation(f"recurrence of {tokens}", run, run(_reference), 1e-4)


def _neurons(up: GgmlType, down: GgmlType) -> Operation:
    rng = np.random.default_rng(int(up))
    ff, cols, rows = 90, 256, 97
    memory = np.ascontiguousarray(np.hstack([random_blocks(rng, rows, cols, type) for type in (up, down)]))
    ids = np.arange(0, ff, 2, dtype=np.int32)
    neurons = Neurons(ids, rng.permutation(rows)[: len(ids)].astype(np.int32), memory, up, down, cols)
    gate, x = rng.standard_normal((3, ff)).astype(_F32), rng.standard_normal((3, cols)).astype(_F32)

    def run(kernels: Kernels) -> np.ndarray:
        h, out = np.zeros((3, ff), _F32), np.zeros((3, cols), _F32)
        kernels.neurons_up(gate, kernels.activations(x), neurons, "relu2", h)
        kernels.neurons_down(h, neurons, out)
        return out

    return Operation(f"neurons {up.name}, {down.name}", run, run(_reference), _INT8)


def wrong_operations(kernels: SimdKernels, operations: list[Operation]) -> list[str]:
    """Names of those whose result is not the reference's."""
    return [operation.name for operation in operations if not operation.is_right(kernels)]
