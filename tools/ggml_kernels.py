"""edgerun's decoder over llama.cpp's own operations: what does it compute where both round alike?

`GgmlKernels` are the reference kernels with every product, norm, activation, softmax and rotation done by ggml itself,
one token at a time, keys and values in F32 or F16. Logits that differ from llama.cpp's by more than single floats'
rounding then show a fault in how edgerun puts operations together; those that do not show that edgerun's own kernels
differ by how they round. States of recurrent layers, which are f32 in both, stay in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from edgerun.formats.gguf import open_gguf
from edgerun.kernels.attention_layout import seen_apart
from edgerun.kernels.far import Far
from edgerun.kernels.interface import (
    I32,
    NO_VECTORS,
    Activation,
    Activations,
    Expert,
    ExpertVectors,
    Gate,
    GateKind,
    Matrix,
    RopeKind,
)
from edgerun.kernels.pages import Span
from edgerun.kernels.reference import ReferenceKernels
from edgerun.kernels.routing import LEAST_SUM, Routing, _allowed
from edgerun.models import Decoder, load_spec
from edgerun.models.rope import RopeTable
from edgerun.models.rope import table_of as plain_table_of
from edgerun.models.spec import Rotation
from edgerun.weights import ResidentStore
from tools.ggml_library import F32, Ggml, Graph, Tensor

_POSITIONS = 256  # of a sequence; a sum's order depends on where a position stands, not on how many there are
_GATED = {"silu": "swiglu_split", "gelu": "geglu_split", "relu": "reglu_split"}
_SCORES = {"softmax": ("soft_max",), "sigmoid": ("sigmoid",), "sqrt_softplus": ("softplus", "sqrt")}


def logits_by_ggml(ggml: Ggml, path: Path, ids: list[int], kv: type[np.floating[Any]]) -> F32:
    """(tokens, vocab) f32. kv: what keys and values are kept in, float32 or float16."""
    if len(ids) > _POSITIONS:
        raise ValueError(f"{len(ids)} tokens are more than {_POSITIONS}")
    kernels = GgmlKernels(ggml, kv)
    tables = lambda rotation, factors: _table_of(ggml, rotation, factors)  # noqa: E731
    with open_gguf(path) as gguf, patch("edgerun.models.passes.table_of", tables):
        spec = load_spec(gguf)
        decoder = Decoder(spec, ResidentStore(gguf, spec, kernels), kernels)
        cache = decoder.new_cache(_POSITIONS)
        return np.concatenate([decoder.forward([token], cache, logits="all") for token in ids])


class GgmlKernels(ReferenceKernels):
    """`ReferenceKernels` by ggml, of one sequence."""

    def __init__(self, ggml: Ggml, kv: type[np.floating[Any]]) -> None:
        self._ggml, self._kv = ggml, kv
        self._kept: dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]] = {}  # by a layer's place in pages

    def _each(self, name: str, x: F32, *more: F32 | float) -> F32:
        """An operation on one array, or on several of one shape."""

        def build(g: Graph) -> Tensor:
            given = [g.tensor(each) if isinstance(each, np.ndarray) else each for each in (x, *more)]
            return Tensor(getattr(g, name)(*given))

        return self._ggml.compute(build, x.shape)

    def _products(self, w: Matrix, rows: F32, *, by_id: bool = False) -> F32:
        """(n, cols) -> (n, w.rows), row by row, as of a token; by_id: as an expert's."""

        def build(g: Graph, row: F32) -> Tensor:
            if by_id:
                weights = g.tensor(w.data, w.type.value, (1, w.rows, w.cols))
                return g.mul_mat_id(weights, g.tensor(row[None, None]), g.tensor(np.zeros((1, 1), np.int32)))
            return g.mul_mat(g.tensor(w.data, w.type.value, (w.rows, w.cols)), g.tensor(row[None]))

        found = [self._ggml.compute(lambda g, row=row: build(g, row), (w.rows,)) for row in rows]
        return np.array(found, np.float32).reshape(len(rows), w.rows)

    def matmul(self, w: Matrix, x: Activations, out: F32, *, add: bool = False) -> None:
        found = self._products(w, x.x)
        out[:] = out + found if add else found

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
            ids = np.full(len(row), expert.id, np.int32)
            up = self._products(expert.up, x.x[row], by_id=True)
            self.affine(up, ids, vectors.up_scale, vectors.up_bias)
            if expert.gate is None:
                self.gated(up, None, activation, up)
            else:
                gate = self._products(expert.gate, x.x[row], by_id=True)
                self.affine(gate, ids, vectors.gate_scale, vectors.gate_bias)
                self.gated(gate, up, activation, up)
            out[slot] = self._products(expert.down, up, by_id=True)

    def combine(self, parts: F32, weights: F32, out: F32, *, add: bool = False) -> None:
        tokens, used = weights.shape
        weighted = parts.reshape(tokens, used, -1) * weights[:, :, None]
        total = weighted[:, 0]
        for slot in range(1, used):
            total = total + weighted[:, slot]
        out[:] = total + out if add else total

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        out[:] = self._ggml.compute(lambda g: g.mul(g.rms_norm(g.tensor(x), eps), g.tensor(weight)), x.shape)

    def layer_norm(self, x: F32, weight: F32, bias: F32 | None, eps: float, out: F32) -> None:
        def build(g: Graph) -> Tensor:
            normed = g.mul(g.norm(g.tensor(x), eps), g.tensor(weight))
            return normed if bias is None else g.add(normed, g.tensor(bias))

        out[:] = self._ggml.compute(build, x.shape)

    def head_gate(self, x: F32, gate: F32, kind: GateKind) -> None:
        x *= self._each(kind, gate)

    def rope(self, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
        half = cos.shape[1]
        low, high = slice(0, half), slice(half, 2 * half)
        if kind == "norm":
            low, high = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        a, b = x[:, :, low].copy(), x[:, :, high].copy()
        c, s = cos[:, None, :], sin[:, None, :]
        x[:, :, low], x[:, :, high] = _fused(a, c, -(b * s)), _fused(a, s, b * c)

    def kv_write(self, spans: Sequence[Span], k: F32, v: F32) -> None:
        row = 0
        for span in spans:
            layout = span.pages.layout
            place = int(span.pages.table[0]), layout.keys_at
            if place not in self._kept:
                sizes = [(layout.kv_heads, _POSITIONS, dim) for dim in (layout.head_dim, layout.head_dim_v)]
                self._kept[place] = np.zeros(sizes[0], self._kv), np.zeros(sizes[1], self._kv)
            keys, values = self._kept[place]
            mine, at = slice(row, row + span.rows), slice(span.start, span.end)
            written = v[mine] if layout.values.bits else k[mine, :, -layout.head_dim_v :]
            keys[:, at], values[:, at] = k[mine].swapaxes(0, 1), written.swapaxes(0, 1)
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
        if far is not None:
            raise NotImplementedError("llama.cpp does not keep a text's first positions beside a window")
        places = [(span, own) for span in spans for own in range(span.start, span.end)]
        for row, (span, own) in enumerate(places):
            keys, values = self._kept[int(span.pages.table[0]), span.pages.layout.keys_at]
            mask = np.full((1, _POSITIONS), -np.inf, np.float32)
            mask[0, seen_apart(own + 1, 0, window, chunked)[0] : own + 1] = 0

            def build(g: Graph, query: F32, keys: NDArray[Any], values: NDArray[Any], mask: F32) -> Tensor:
                scores = g.mul_mat(g.tensor(keys), g.tensor(query * np.float32(scale) if softcap else query))
                if softcap:  # where there is one, queries are scaled
                    scores = g.scale(g.tanh(g.scale(scores, 1 / softcap)), softcap)
                shares = g.soft_max_ext(scores, g.tensor(mask), 1.0 if softcap else scale, 0.0)
                if sinks is not None:
                    g.with_sinks(shares, g.tensor(sinks))
                return g.mul_mat(g.tensor(values.swapaxes(1, 2)), shares)

            given = q[row][:, None], keys, values, mask
            out[row] = self._ggml.compute(lambda g, given=given: build(g, *given), out[row].shape)

    def gated(self, gate: F32, up: F32 | None, activation: Gate, out: F32) -> None:
        if activation == "oai" and up is not None:
            out[:] = self._each("swiglu_oai", gate, up, 1.702, 7.0)
        elif activation in _GATED and up is not None:
            out[:] = self._each(_GATED[activation], gate, up)
        else:
            names = {"none": (), "relu2": ("relu", "sqr")}.get(activation, (activation,))
            found = self._chain(names, gate)
            out[:] = found if up is None else found * up

    def _chain(self, names: Sequence[str], x: F32) -> F32:
        """One operation after the other."""
        for name in names:
            x = self._each(name, x)
        return x

    def route(
        self, logits: F32, routing: Routing, ids: I32, weights: F32 | None = None, bias: F32 | None = None
    ) -> None:
        scores = self._chain(_SCORES.get(routing.kind, ()), logits)
        ranked = np.argsort(-_allowed(scores if bias is None else scores + bias, routing), axis=1, kind="stable")
        ids[:] = ranked[:, : routing.used]
        if weights is None:
            return
        found = np.take_along_axis(scores, ids, axis=1)
        if routing.kind == "softmax_topk":
            found = self._each("soft_max", found)
        if routing.renormalise:
            total = found.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
            found = found / np.maximum(total, LEAST_SUM)
        weights[:] = found * np.float32(routing.scale)

    def weigh(self, x: F32, weight: F32, out: F32) -> None:
        for row, target in zip(x, out, strict=True):
            product = lambda g, row=row: g.mul_mat(g.tensor(weight.reshape(1, -1)), g.tensor(row[None]))  # noqa: E731
            target[:] = self._ggml.compute(product, (1,))


def _fused(a: F32, b: F32, c: F32) -> F32:
    """a * b + c, rounded once, as its compiler makes ggml's: the product is exact in f64."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


class _GgmlTable(RopeTable):
    """Cosines and sines as ggml finds them: each angle from the one before, in f32."""

    def __init__(self, plain: RopeTable, turned: F32) -> None:
        """turned: (positions, rope_dim / 2, 2) f32, cosine and sine."""
        self._plain, self._turned = plain, turned

    @property
    def key(self) -> str:
        return self._plain.key

    def at(self, start: int, tokens: int) -> tuple[F32, F32]:
        mine = self._turned[start : start + tokens]
        return mine[:, :, 0].copy(), mine[:, :, 1].copy()

    def gather(self, positions: Sequence[int], cos: F32, sin: F32) -> None:
        cos[:], sin[:] = self._turned[list(positions), :, 0], self._turned[list(positions), :, 1]


def _table_of(ggml: Ggml, rotation: Rotation, factors: F32 | None) -> RopeTable:
    """In the place of `models.rope.table_of`; that itself where llama.cpp does more than rotate."""
    plain, how = plain_table_of(rotation, factors), rotation.scaling
    if rotation.still or rotation.temperature is not None or rotation.most:
        return plain
    yarn = float(how.kind == "yarn")
    slower = np.float32(how.factor if how.kind in ("linear", "yarn") else 1)
    factor = plain._factor / (1 + 0.1 * np.log(how.factor)) if yarn else plain._factor  # ggml multiplies by that itself

    def build(g: Graph) -> Tensor:
        units = np.tile(np.array([1, 0], np.float32), (_POSITIONS, 1, rotation.dim // 2))
        places = g.tensor(np.arange(_POSITIONS, dtype=np.int32))
        more = g.tensor(factors) if factors is not None and rotation.from_file else None
        said = (rotation.dim, 0, how.original_context, rotation.base, float(1 / slower))
        return g.rope_ext(g.tensor(units), places, more, *said, yarn, factor, how.beta_fast, how.beta_slow)

    return _GgmlTable(plain, ggml.compute(build, (_POSITIONS, rotation.dim // 2, 2)))
