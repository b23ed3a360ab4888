"""Every operation in plain numpy: slow, obviously right, and what all the others are compared with.

Weights stay in their GGUF blocks and are dequantised a few rows at a time; activations stay f32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import dequantize
from edgerun.kernels import state_reference, stream_reference
from edgerun.kernels.attention_layout import seen_apart
from edgerun.kernels.eighths import PlainRounding
from edgerun.kernels.far import Far
from edgerun.kernels.interface import (
    F32,
    I32,
    NO_VECTORS,
    U8,
    Activation,
    Activations,
    ConvActivation,
    Expert,
    ExpertVectors,
    Gate,
    GateKind,
    Matrix,
    Neurons,
    RopeKind,
    ScanRule,
)
from edgerun.kernels.page_arrays import read_positions, rotated, write_positions
from edgerun.kernels.pages import Span, check_spans, layout_of
from edgerun.kernels.routing import Routing, route
from edgerun.kernels.states import StateRows
from edgerun.kernels.stream_weights import StreamWeights

_WEIGHTS = 1 << 17  # dequantised at a time: what a core's own cache holds, for all rows go over them one by one


@dataclass(frozen=True, eq=False)
class PlainActivations:
    """Rows as they are."""

    x: F32


class ReferenceKernels(PlainRounding):
    """The numpy implementation of `interface.Kernels`."""

    name = "reference"
    threads = 1
    recording = None
    row_group = 1
    layout_name = "gguf"

    def prepare(self, types: Sequence[GgmlType]) -> None:
        """Nothing is compiled."""

    def pack(self, raw: U8, type: GgmlType, cols: int, memory: U8 | None = None) -> Matrix:
        if memory is None:
            return Matrix(raw.shape[0], cols, type, "gguf", np.array(raw, order="C"))
        matrix = self.matrix_in(memory, type, raw.shape[0], cols)
        matrix.data[:] = raw
        return matrix

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        return rows * type.row_bytes(cols)

    def matrix_in(self, memory: U8, type: GgmlType, rows: int, cols: int) -> Matrix:
        return Matrix(rows, cols, type, "gguf", memory.reshape(rows, type.row_bytes(cols)))

    def pack_rows(self, raw: U8, w: Matrix, first_row: int) -> None:
        w.data[first_row : first_row + raw.shape[0]] = raw

    def activations(self, x: F32) -> Activations:
        return PlainActivations(x)

    def matmul(self, w: Matrix, x: Activations, out: F32, *, add: bool = False) -> None:
        check_matmul(w, x.x, out)
        step = max(1, _WEIGHTS // w.cols)
        for lo in range(0, w.rows, step):
            hi = min(lo + step, w.rows)
            weights = dequantize(w.data[lo:hi], w.type)
            for row, target in zip(x.x, out[:, lo:hi], strict=True):  # BLAS sums many rows in another order than one
                target[:] = target + weights @ row if add else weights @ row

    def matmul_many(self, ws: Sequence[Matrix], x: Activations, outs: Sequence[F32]) -> None:
        for w, out in zip(ws, outs, strict=True):
            self.matmul(w, x, out)

    def matmul_heads(self, w: Matrix, x: Activations, out: F32) -> None:
        tokens, heads, rows = check_matmul_heads(w, x.x, out)
        by_head = x.x.reshape(tokens, heads, -1)
        for head in range(heads):
            mine = Matrix(rows, w.cols, w.type, "gguf", w.data[head * rows : (head + 1) * rows])
            result = np.empty((tokens, rows), np.float32)
            self.matmul(mine, PlainActivations(np.ascontiguousarray(by_head[:, head])), result)
            out[:, head] = result

    def experts_ffn(
        self,
        experts: Sequence[Expert],
        x: Activations,
        rows: Sequence[I32],
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
        vectors: ExpertVectors = NO_VECTORS,
    ) -> None:
        for expert, row, slot in zip(experts, rows, slots, strict=True):
            chosen, ids = PlainActivations(np.ascontiguousarray(x.x[row])), np.full(len(row), expert.id, np.int32)
            up = np.empty((len(row), expert.up.rows), np.float32)
            self.matmul(expert.up, chosen, up)
            self.affine(up, ids, vectors.up_scale, vectors.up_bias)
            if expert.gate is None:
                self.gated(up, None, activation, up)
            else:
                gate = np.empty_like(up)
                self.matmul(expert.gate, chosen, gate)
                self.affine(gate, ids, vectors.gate_scale, vectors.gate_bias)
                self.gated(gate, up, activation, up)
            result = np.empty((len(row), expert.down.rows), np.float32)
            self.matmul(expert.down, PlainActivations(up), result)
            out[slot] = result

    def prepare_neurons(self, types: Sequence[GgmlType]) -> None:
        """Nothing is compiled."""

    def neurons_up(self, gate: F32, x: Activations, neurons: Neurons, activation: Activation, h: F32) -> None:
        up_bytes = neurons.up_type.row_bytes(neurons.cols)
        for ids, slots in _in_pieces(neurons):
            rows = dequantize(neurons.memory[slots, :up_bytes], neurons.up_type)
            fired = activate(gate[:, ids], activation)
            for t, row in enumerate(x.x):
                products = np.add.reduce(rows * row, axis=1)  # no BLAS: a row must not depend on its neighbours
                h[t, ids] = np.where(fired[t] > 0, fired[t] * products, np.float32(0))

    def neurons_down(self, h: F32, neurons: Neurons, out: F32) -> None:
        up_bytes = neurons.up_type.row_bytes(neurons.cols)
        for ids, slots in _in_pieces(neurons):
            rows = dequantize(neurons.memory[slots, up_bytes:], neurons.down_type)
            for i, row in zip(ids.tolist(), rows, strict=True):
                fired = h[:, i] != 0
                out[fired] += h[fired, i, None] * row

    def combine(self, parts: F32, weights: F32, out: F32, *, add: bool = False) -> None:
        tokens, k = weights.shape
        total = out.copy() if add else np.zeros_like(out)
        parts = parts.reshape(tokens, k, -1)
        for slot in range(k):
            total += weights[:, slot, None] * parts[:, slot]
        out[:] = total

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        mean_square = np.mean(np.square(x, dtype=np.float64), axis=-1, keepdims=True)
        out[:] = (x / np.sqrt(mean_square + eps)).astype(np.float32) * weight

    def layer_norm(self, x: F32, weight: F32, bias: F32 | None, eps: float, out: F32) -> None:
        centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
        variance = np.mean(np.square(centred), axis=-1, keepdims=True)
        out[:] = (centred / np.sqrt(variance + eps)).astype(np.float32) * weight
        if bias is not None:
            out += bias

    def affine(self, x: F32, ids: I32 | None, scale: F32 | None, bias: F32 | None) -> None:
        entries = np.zeros(len(x), np.int32) if ids is None else ids
        if scale is not None:
            x *= scale[entries, None]
        if bias is not None:
            x += bias[entries]

    def copy(self, x: F32, out: F32) -> None:
        out[:] = x

    def head_gate(self, x: F32, gate: F32, kind: GateKind) -> None:
        if kind == "softplus":
            x *= np.logaddexp(np.float32(0.0), gate)
        else:
            with np.errstate(over="ignore"):
                x *= 1.0 / (1.0 + np.exp(-gate))

    def add(self, x: F32, y: F32) -> None:
        x += y

    def scale(self, x: F32, factor: float) -> None:
        x *= np.float32(factor)

    def rope(self, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
        half = cos.shape[1]
        if kind == "norm":
            a, b = x[:, :, 0 : 2 * half : 2].copy(), x[:, :, 1 : 2 * half : 2].copy()
        else:
            a, b = x[:, :, :half].copy(), x[:, :, half : 2 * half].copy()
        c, s = cos[:, None, :], sin[:, None, :]
        if kind == "norm":
            x[:, :, 0 : 2 * half : 2], x[:, :, 1 : 2 * half : 2] = a * c - b * s, a * s + b * c
        else:
            x[:, :, :half], x[:, :, half : 2 * half] = a * c - b * s, a * s + b * c

    def kv_write(self, spans: Sequence[Span], k: F32, v: F32) -> None:
        check_spans(spans, len(k), [span.start for span in spans])
        row = 0
        for span in spans:
            write_positions(span.pages, span.start, k[row : row + span.rows], v[row : row + span.rows])
            row += span.rows

    def attention(
        self,
        q: F32,
        spans: Sequence[Span],
        out: F32,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
        chunked: bool = False,
        sinks: F32 | None = None,
        far: Far | None = None,
    ) -> None:
        heads, dim = q.shape[1:]
        kv_heads = layout_of(spans).kv_heads
        apart = 0 if far is None else far.positions
        firsts = [seen_apart(span.start + 1, apart, window, chunked)[0] for span in spans]
        check_spans(spans, len(q), firsts)
        queries = q if far is None else far.q
        if layout_of(spans).keys.is_rotated:
            q, queries = rotated(q), rotated(queries)
        row = 0
        for span, begin in zip(spans, firsts, strict=True):
            keys, values = read_positions(span.pages, begin, span.end)
            for own in range(span.start, span.end):  # one by one: sums are over what a row sees alone
                first, far_end = seen_apart(own + 1, apart, window, chunked)
                seen = slice(first - begin, own + 1 - begin)
                scores = _scores(q[row].reshape(kv_heads, -1, dim), keys[:, seen])
                mine = values[:, seen]
                if far_end:
                    far_keys, far_values = read_positions(span.pages, 0, far_end)
                    far_scores = _scores(queries[row].reshape(kv_heads, -1, dim), far_keys)
                    scores = np.concatenate([far_scores, scores], axis=2)
                    mine = np.concatenate([far_values, mine], axis=1)
                scores *= np.float32(scale)
                if softcap:
                    scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
                if sinks is not None:
                    scores = np.concatenate([scores, sinks.reshape(kv_heads, -1, 1)], axis=2)
                weights = np.exp(scores - scores.max(axis=2, keepdims=True))
                weights /= weights.sum(axis=2, keepdims=True)
                out[row] = (weights[:, :, : mine.shape[1]] @ mine).reshape(heads, -1)  # without the sink's
                row += 1

    def causal_conv(
        self, u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation
    ) -> None:
        state_reference.causal_conv(u, weight, bias, states, out, activation)

    def scan(
        self,
        q: F32,
        k: F32,
        v: F32,
        decay: F32,
        step: F32,
        states: StateRows,
        out: F32,
        *,
        rule: ScanRule,
        turn: int,
        scale: float = 1.0,
        skip: F32 | None = None,
    ) -> None:
        state_reference.scan(q, k, v, decay, step, states, out, rule=rule, turn=turn, scale=scale, skip=skip)

    def unit_heads(self, x: F32, eps: float) -> None:
        state_reference.unit_heads(x, eps)

    def scan_steps(self, x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
        state_reference.scan_steps(x, gate, bias, a, decay, step)

    def gated_norm(self, x: F32, gate: F32, weight: F32 | None, eps: float, out: F32, *, gate_first: bool) -> None:
        state_reference.gated_norm(x, gate, weight, eps, out, gate_first=gate_first)

    def mix_streams(self, x: F32, shares: StreamWeights, out: F32) -> None:
        stream_reference.mix_streams(x, shares, out)

    def correct_streams(self, x: F32, result: F32, shares: StreamWeights, out: F32, factors: F32, first: F32) -> None:
        stream_reference.correct_streams(x, result, shares, out, factors, first)

    def match_norms(self, x: F32, like: F32) -> None:
        stream_reference.match_norms(x, like)

    def above_mean(self, x: F32, deviations: float) -> None:
        stream_reference.above_mean(x, deviations)

    def gated(self, gate: F32, up: F32 | None, activation: Gate, out: F32) -> None:
        activated = activate(gate, activation)
        if up is not None and activation == "oai":
            up = np.clip(up, np.float32(-7), np.float32(7)) + np.float32(1)
        out[:] = activated if up is None else activated * up

    def route(
        self, logits: F32, routing: Routing, ids: I32, weights: F32 | None = None, bias: F32 | None = None
    ) -> None:
        ids[:], found = route(logits, routing, bias)
        if weights is not None:
            weights[:] = found

    def weigh(self, x: F32, weight: F32, out: F32) -> None:
        out[:, 0] = (x * weight).sum(axis=1)  # row by row: no BLAS

    def prepare_eighths(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to stop."""


def _in_pieces(neurons: Neurons) -> Iterator[tuple[I32, I32]]:
    """Ids and slots of so many neurons as are dequantised at a time."""
    step = max(1, _WEIGHTS // neurons.cols)
    for low in range(0, len(neurons.ids), step):
        yield neurons.ids[low : low + step], neurons.slots[low : low + step]


def activate(x: F32, activation: Gate) -> F32:
    """The gate's non-linearity. gelu is the tanh form, as in ggml."""
    if activation == "silu":
        with np.errstate(over="ignore"):
            return (x / (1.0 + np.exp(-x))).astype(np.float32)
    if activation == "gelu":
        inner = np.float32(0.79788456080286535588) * x * (1.0 + np.float32(0.044715) * x * x)
        return (0.5 * x * (1.0 + np.tanh(inner))).astype(np.float32)
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "relu2":
        return np.square(np.maximum(x, np.float32(0)))
    if activation == "none":
        return x
    if activation == "oai":
        capped = np.minimum(x, np.float32(7))
        with np.errstate(over="ignore"):
            return (capped / (1.0 + np.exp(np.float32(-1.702) * capped))).astype(np.float32)
    raise UsageError(f"unknown activation {activation!r}; choose silu, gelu, relu, relu2 or oai")


def check_matmul_heads(w: Matrix, x: F32, out: F32) -> tuple[int, int, int]:
    """Tokens, heads, rows of each head. UsageError where the shapes do not fit."""
    if out.ndim == 3 and len(out):
        tokens, heads, rows = out.shape
        if x.shape == (tokens * heads, w.cols) and w.rows == heads * rows and out.strides[2] == 4:
            return tokens, heads, rows
    raise UsageError(f"cannot multiply heads {x.shape} with {w.rows} x {w.cols} into {out.shape}")


def _scores(q: F32, keys: F32) -> F32:
    """(kv_heads, group, dim), (kv_heads, n, dim) -> (kv_heads, group, n)."""
    scores: F32 = q @ keys.transpose(0, 2, 1)
    return scores


def check_matmul(w: Matrix, x: F32, out: F32) -> None:
    """Raises UsageError unless (T, cols) x (rows, cols) -> (T, rows)."""
    if x.ndim != 2 or x.shape[1] != w.cols or out.shape != (x.shape[0], w.rows):
        raise UsageError(
            f"cannot multiply rows {x.shape} by a {w.rows} x {w.cols} matrix into {out.shape}; "
            f"expected (T, {w.cols}) and (T, {w.rows})"
        )
