"""The operations that the decoder is made of, as one interface with several implementations.

`reference` is numpy and obviously right; those named by an instruction set (`isa.ISAS`) are Numba over packed weights.
Outputs belong to the caller, are C-contiguous f32 and never aliased with inputs unless stated. T: rows (tokens) in the
call, one in decode, a chunk of the prompt otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UnsupportedError, UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.eighths import Rounding
from edgerun.kernels.far import Far
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.layout import layout_bytes
from edgerun.kernels.pages import Span
from edgerun.kernels.routing import Routing
from edgerun.kernels.states import StateRows
from edgerun.kernels.stream_weights import StreamWeights

if TYPE_CHECKING:
    from edgerun.kernels.recording import Recording

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

RopeKind = Literal["norm", "neox"]
Activation = Literal["silu", "gelu", "relu", "relu2", "oai"]
Gate = Literal[Activation, "none"]
GateKind = Literal["sigmoid", "softplus"]
ConvActivation = Literal["none", "silu"]
ScanRule = Literal["delta", "sum"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """One weight matrix (rows, cols) in the layout of the kernels that packed it. `data` owns the bytes.

    This is the one gate through which weights reach machine code, which trusts rows, cols and type: so there is no
    Matrix whose bytes are not exactly theirs, and the address is found here, never given. UsageError for all others.
    """

    rows: int
    cols: int
    type: GgmlType
    layout: str  # see `layout.layout_bytes`
    data: U8
    address: int = field(init=False)  # of `data`

    def __post_init__(self) -> None:
        if type(self.rows) is not int or type(self.cols) is not int or not isinstance(self.data, np.ndarray):
            raise UsageError(f"a matrix is made of whole numbers and an array, not {self.rows!r} x {self.cols!r}")
        n_bytes = layout_bytes(self.layout, self.type, self.rows, self.cols)
        shape = (self.rows, n_bytes // self.rows) if self.layout == "gguf" else self.data.shape
        if (
            self.data.dtype != np.uint8
            or self.data.nbytes != n_bytes
            or self.data.shape != shape
            or not self.data.flags.c_contiguous
        ):
            raise UsageError(
                f"{self.data.shape} {self.data.dtype} are not the {n_bytes} bytes of {self.rows} x {self.cols} "
                f"{self.type.name}"
            )
        object.__setattr__(self, "address", int(self.data.__array_interface__["data"][0]))

    @property
    def n_bytes(self) -> int:
        return int(self.data.nbytes)


class Activations(Protocol):
    """Rows about to be multiplied, (T, K) f32; what a format needs of them (int8 blocks) is made at first use."""

    @property
    def x(self) -> F32: ...


@dataclass(frozen=True, eq=False)
class Expert:
    """The matrices of one expert's feed-forward, gated or not. UsageError where they do not fit each other."""

    id: int
    gate: Matrix | None  # (expert_ff, d); None: not gated
    up: Matrix  # (expert_ff, d)
    down: Matrix  # (d, expert_ff)
    kind: tuple[object, ...] = field(init=False)  # types, layouts and sizes: alike for experts that lie alike

    def __post_init__(self) -> None:
        all_of = [self.up, self.down] if self.gate is None else [self.gate, self.up, self.down]
        up, down = self.up, self.down
        fits = all((each.rows, each.cols) == (up.rows, up.cols) for each in all_of[:-1])
        if not fits or (down.rows, down.cols) != (up.cols, up.rows):
            shapes = ", ".join(f"{each.rows} x {each.cols}" for each in all_of)
            raise UsageError(f"expert {self.id}: {shapes} are not gate, up and down of one feed-forward")
        kinds = [(each.type, each.layout) for each in all_of]
        object.__setattr__(self, "kind", (*kinds, up.rows, up.cols))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Gate, if it has one, up and down."""
        return (self.up, self.down) if self.gate is None else (self.gate, self.up, self.down)


def make_expert(id: int, matrices: Sequence[Matrix]) -> Expert:
    """Of gate, if it has one, up and down."""
    *gate, up, down = matrices
    return Expert(id, gate[0] if gate else None, up, down)


@dataclass(frozen=True, eq=False)
class ExpertVectors:
    """What a layer's experts have beside their matrices before the activation, by expert: factors (experts,), then
    biases (experts, expert_ff), f32. None: the file has none."""

    gate_scale: F32 | None = None
    gate_bias: F32 | None = None
    up_scale: F32 | None = None
    up_bias: F32 | None = None

    @property
    def gate(self) -> tuple[F32 | None, F32 | None] | None:
        """Factors and biases of the gates; None: neither."""
        return None if self.gate_scale is None and self.gate_bias is None else (self.gate_scale, self.gate_bias)

    @property
    def up(self) -> tuple[F32 | None, F32 | None] | None:
        """Of the ups."""
        return None if self.up_scale is None and self.up_bias is None else (self.up_scale, self.up_bias)


NO_VECTORS = ExpertVectors()


NEURON_TYPES = tuple(FORMATS)
NEURON_COLS = 32  # d must be a multiple


@dataclass(frozen=True, eq=False)
class Neurons:
    """Some neurons of a gated feed-forward, each with its row of up and its row of down (transposed) side by side, as
    GGUF blocks: what a neuron that does not fire never needs. UsageError for rows that are not in `memory`."""

    ids: I32  # (n,) ascending: their columns of the gate
    slots: I32  # (n,) rows of `memory`
    memory: U8  # (rows, up row bytes + down row bytes), contiguous
    up_type: GgmlType
    down_type: GgmlType
    cols: int  # d

    def __post_init__(self) -> None:
        check_neurons("up", self.up_type, self.cols)
        check_neurons("down", self.down_type, self.cols)
        memory, width = self.memory, self.up_type.row_bytes(self.cols) + self.down_type.row_bytes(self.cols)
        if memory.ndim != 2 or memory.shape[1] != width or memory.dtype != np.uint8 or not memory.flags.c_contiguous:
            raise UsageError(f"{memory.shape} {memory.dtype} are not rows of neurons of {width} bytes")
        for name, values in (("ids", self.ids), ("slots", self.slots)):
            if values.dtype != np.int32 or values.shape != (len(self.ids),) or not values.flags.c_contiguous:
                raise UsageError(f"{name} of {len(self.ids)} neurons cannot be {values.shape} {values.dtype}")
        if len(self.ids) and (self.ids.min() < 0 or self.slots.min() < 0 or self.slots.max() >= len(memory)):
            raise UsageError(f"neurons outside the {len(memory)} rows that there are")


def check_neurons(what: str, type: GgmlType, cols: int) -> None:
    """UnsupportedError unless neurons can be of this type and width."""
    if type not in NEURON_TYPES:
        known = ", ".join(each.name for each in NEURON_TYPES)
        raise UnsupportedError(f"{what}: there are no neurons of {type.name}; they may be {known}")
    multiple = max(NEURON_COLS, type.block_size)
    if cols % multiple:
        raise UnsupportedError(
            f"{what}: neurons of {cols} {type.name}; of this type they have a multiple of {multiple}"
        )


class Kernels(Rounding, Protocol):
    """All that a decoder needs from the processor."""

    name: str
    threads: int

    def prepare(self, types: Sequence[GgmlType]) -> None:
        """Have the code for matrices of these types ready; else it is made at first use, which no two threads may
        be the first at."""
        ...

    def pack(self, raw: U8, type: GgmlType, cols: int, memory: U8 | None = None) -> Matrix:
        """GGUF rows (rows, row_bytes) u8 -> a Matrix. Lossless; copies, `raw` may go away.

        memory: where to (packed_bytes,); None: to memory of its own."""
        ...

    @property
    def layout_name(self) -> str:
        """Of packed matrices: bytes packed under one name can be used by all kernels of that name."""
        ...

    @property
    def row_group(self) -> int:
        """Rows that lie interleaved: `pack_rows` wants to begin at a multiple of it."""
        ...

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        """Memory of a packed matrix."""
        ...

    def matrix_in(self, memory: U8, type: GgmlType, rows: int, cols: int) -> Matrix:
        """A Matrix in caller-owned memory (packed_bytes,) u8, to be filled by `pack_rows`, or full already."""
        ...

    def pack_rows(self, raw: U8, w: Matrix, first_row: int) -> None:
        """Pack GGUF rows (n, row_bytes) u8 to rows first_row .. of `w`; n may be off `row_group` only at the end of
        the matrix. On the calling thread alone, and from several threads at once for different rows."""
        ...

    def activations(self, x: F32) -> Activations:
        """(T, K) f32 -> something that `matmul` takes. Valid until `x` is written or `activations` called again."""
        ...

    def matmul(self, w: Matrix, x: Activations, out: F32, *, add: bool = False) -> None:
        """out (T, N) = x (T, K) @ w.T, or += with `add`."""
        ...

    def matmul_many(self, ws: Sequence[Matrix], x: Activations, outs: Sequence[F32]) -> None:
        """Several products of the same rows (q, k, v; gate, up) in one launch."""
        ...

    def matmul_heads(self, w: Matrix, x: Activations, out: F32) -> None:
        """Every head by a matrix of its own: out (T, heads, N), rows at any distance, = x (T * heads, K), head after
        head of one token after another, times w (heads * N, K), of which N rows belong to each head."""
        ...

    def experts_ffn(
        self,
        experts: Sequence[Expert],
        x: Activations,  # (T, d)
        rows: Sequence[I32],  # per expert: which rows of x it works on
        slots: Sequence[I32],  # per expert: the row of `out` that each result goes to
        activation: Activation,
        out: F32,  # (T * k, d)
        vectors: ExpertVectors = NO_VECTORS,
    ) -> None:
        """out[slot] = down(activation(gate(x[row])) * up(x[row])), or down(activation(up(x[row]))) without a gate:
        unweighted, so that order cannot matter. All experts of a call have a gate, or none has."""
        ...

    def prepare_neurons(self, types: Sequence[GgmlType]) -> None:
        """As `prepare`, for neurons of these types."""
        ...

    def neurons_up(self, gate: F32, x: Activations, neurons: Neurons, activation: Activation, h: F32) -> None:
        """h[t, i] = activation(gate[t, i]) * up_i(x[t]) for each id i, 0 where the gate did not fire (<= 0).
        gate, h (T, ff); x (T, d); other columns of h stay. `activation` is relu or relu2."""
        ...

    def neurons_down(self, h: F32, neurons: Neurons, out: F32) -> None:
        """out (T, d) += sum over the ids, ascending, of h[t, i] * down_i: zeros are skipped, so that a sum does not
        depend on which silent neurons are named, nor on how the ids were divided into ascending calls."""
        ...

    def combine(self, parts: F32, weights: F32, out: F32, *, add: bool = False) -> None:
        """out (T, d) (+)= sum over k of weights (T, k) * parts (T * k, d), summed in the order of k."""
        ...

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        """out (rows, n) = x / rms(x) * weight (n,). `out` may be `x`; of x the rows may lie apart."""
        ...

    def head_gate(self, x: F32, gate: F32, kind: GateKind) -> None:
        """x (rows, n) *= kind(gate), gate (rows, n) or (rows, 1), whose rows may lie apart.
        softplus(x) = log(1 + e^x)."""
        ...

    def layer_norm(self, x: F32, weight: F32, bias: F32 | None, eps: float, out: F32) -> None:
        """out (rows, n) = (x - mean) / sqrt(variance + eps) * weight (n,) + bias (n,). `out` may be `x`."""
        ...

    def affine(self, x: F32, ids: I32 | None, scale: F32 | None, bias: F32 | None) -> None:
        """x[r] = x[r] * scale[ids[r]] + bias[ids[r]] for x (rows, n), scale (entries,), bias (entries, n), in place.
        No ids: all rows by the first entry; no scale: 1; no bias: 0."""
        ...

    def add(self, x: F32, y: F32) -> None:
        """x += y; `y` may be one row (a bias); the rows of a flat x may lie apart."""
        ...

    def scale(self, x: F32, factor: float) -> None:
        """x *= factor."""
        ...

    def copy(self, x: F32, out: F32) -> None:
        """out = x, (rows, cols) both, whose rows may lie at any distance."""
        ...

    def rope(self, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
        """Rotate x (T, heads, head_dim) in place; cos, sin (T, rot / 2); dimensions beyond rot stay.
        norm: pairs (2i, 2i + 1); neox: pairs (i, i + rot / 2)."""
        ...

    def kv_write(self, spans: Sequence[Span], k: F32, v: F32) -> None:
        """The spans' positions, in their order, = k (T, kv_heads, head_dim) and v (T, kv_heads, head_dim_v). All spans
        are of one layer, of different sequences."""
        ...

    def attention(
        self,
        q: F32,  # (T, heads, head_dim)
        spans: Sequence[Span],  # of which positions the rows are, in order; each sees those <= its own (written before)
        out: F32,  # (T, heads, head_dim_v)
        *,
        scale: float,
        softcap: float = 0.0,  # 0: none; else softcap * tanh(score / softcap)
        window: int = 0,  # 0: none; else sees only positions > own - window
        chunked: bool = False,  # with a window: sees only positions >= own // window * window
        sinks: F32 | None = None,  # (heads,): one more score of each head, whose share of the weights goes nowhere
        far: Far | None = None,  # with a window: the first positions are seen all the same
    ) -> None:
        """Causal grouped-query attention: head h reads kv head h // (heads / kv_heads). A row's bits depend on its
        position and on what it sees alone: not on T, nor on what stands after it, nor on other sequences."""
        ...

    def causal_conv(
        self,
        u: F32,  # (T, C)
        weight: F32,  # (C, taps)
        bias: F32 | None,  # (C,)
        states: StateRows,  # of which inputs were before the first row of each stretch; and where the last ones go
        out: F32,  # (T, C); may be u
        activation: ConvActivation,
    ) -> None:
        """Every column by itself: out[t] = activation(sum over j of u[t - taps + 1 + j] * weight[:, j] + bias). A row's
        bits depend on its inputs alone, not on where a stretch is cut. u and out may be columns of wider buffers."""
        ...

    def scan(
        self,
        q: F32,  # (T, key heads, key_dim)
        k: F32,  # (T, key heads, key_dim)
        v: F32,  # (T, heads, value_dim)
        decay: F32,  # (T, heads): factors
        step: F32,  # (T, heads)
        states: StateRows,  # their matrices M (heads, key_dim, value_dim)
        out: F32,  # (T, heads, value_dim)
        *,
        rule: ScanRule,
        turn: int,
        scale: float = 1.0,
        skip: F32 | None = None,  # (heads,)
    ) -> None:
        """Row by row, for every head j: M *= decay; r = (v - k @ M) * step with the rule delta, v * step with sum;
        M += outer(k, r); out = scale * q @ M + skip * v. delta: the gated delta rule (Yang et al. 2025); sum: the
        recurrence of Mamba-2 (Dao and Gu 2024). Of each turn * n heads, n = heads / key heads, `turn` key heads take
        turns: with 1 neighbours share one. Bits as of `causal_conv`; q, k, v may be columns of wider buffers."""
        ...

    def unit_heads(self, x: F32, eps: float) -> None:
        """x (T, heads, dim) /= sqrt(sum of its squares + eps), every head by itself. May be columns of a wider
        buffer."""
        ...

    def scan_steps(self, x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
        """With s = softplus(x + bias): decay = exp(s * a); step = sigmoid(gate), or s without gate. x, gate (T, n, m)
        of n * m heads, parts of wider buffers; bias, a (heads,); decay, step (T, heads)."""
        ...

    def gated_norm(self, x: F32, gate: F32, weight: F32 | None, eps: float, out: F32, *, gate_first: bool) -> None:
        """out = rms_norm(x, weight) * silu(gate), or rms_norm(x * silu(gate), weight), of each group of x, out (T,
        groups, n). weight (n,) or (groups, n), None: no norm; gate (T, groups * n), maybe columns of a wider buffer.
        `out` may be `x`."""
        ...

    def mix_streams(self, x: F32, shares: StreamWeights, out: F32) -> None:
        """Streams x (T, S, d): out[t, i] = x[t, i] + sum over j of w[t, i, j] * x[t, j], with w the shares (T, S * S).
        out is not x."""
        ...

    def correct_streams(
        self,
        x: F32,  # (T, S, d): what the streams were thought to become
        result: F32,  # (T, d): what the first did
        shares: StreamWeights,  # (T, S)
        out: F32,  # (T, S, d), not x
        factors: F32,  # (d,)
        first: F32,  # (T, d)
    ) -> None:
        """out[t, i] = x[t, i] + (1 + w[t, i]) * (result[t] - x[t, 0]), with w the shares; first = out[:, 0] *
        factors."""
        ...

    def match_norms(self, x: F32, like: F32) -> None:
        """x (T, n, d), rows at any distance: each *= |like[t]| / |x[t, i]|; like (T, d), whose rows may lie apart."""
        ...

    def above_mean(self, x: F32, deviations: float) -> None:
        """x (T, n) = max(x - (mean + deviations * standard deviation of a sample), 0), row by row, in place."""
        ...

    def gated(self, gate: F32, up: F32 | None, activation: Gate, out: F32) -> None:
        """out (T, F) = activation(gate) * up; without `up` activation(gate). `out` may be `gate`. gelu is the tanh
        form, relu2 is relu squared; oai is gpt-oss's: g sigmoid(1.702 g) (up + 1) of g = min(gate, 7) and up cut off
        at -7 and 7; none is the gate itself."""
        ...

    def route(
        self, logits: F32, routing: Routing, ids: I32, weights: F32 | None = None, bias: F32 | None = None
    ) -> None:
        """Router logits (T, experts) -> ids (T, used), weights (T, used), best first, ties to the lower id.
        bias (experts,): added to what experts are chosen by, not to what they are weighted by."""

    def weigh(self, x: F32, weight: F32, out: F32) -> None:
        """out (T, 1) = x (T, d) . weight (d,)."""
        ...

    def prepare_eighths(self) -> None:
        """As `prepare`, for rounding and adding (`eighths.Rounding`)."""
        ...

    @property
    def recording(self) -> Recording | None:
        """How launches are recorded and replayed; None where they cannot be."""
        ...

    def close(self) -> None:
        """Stop the threads. The kernels cannot be used afterwards."""
        ...
