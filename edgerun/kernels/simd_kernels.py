"""`interface.Kernels` for one instruction set: compiled kernels, on all threads, over packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from edgerun import paths
from edgerun.device.cpu import default_threads
from edgerun.device.forks import call_after_fork
from edgerun.errors import UsageError
from edgerun.events import EventSink
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import eighths_launch, kernel_names, layer_launch, route_launch, state_launch, stream_launch
from edgerun.kernels.attention_launch import AttentionLaunch, Scores
from edgerun.kernels.choice import choose
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.expert_launch import ExpertLaunch
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
from edgerun.kernels.isa import Isa
from edgerun.kernels.kv_formats import KvFormat
from edgerun.kernels.launch_trace import LaunchTrace
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.neuron_launch import NeuronLaunch
from edgerun.kernels.packer import Packer
from edgerun.kernels.pages import LayerLayout, Span
from edgerun.kernels.product_launch import ProductLaunch
from edgerun.kernels.program import I64, Program, Recorder
from edgerun.kernels.recording import Recording, TokenExperts
from edgerun.kernels.routing import Routing
from edgerun.kernels.rows import Rows
from edgerun.kernels.states import StateRows
from edgerun.kernels.stream_weights import StreamWeights
from edgerun.kernels.sum_launch import lay_out_sum


class SimdKernels:
    """The operations, each passed on to the file that checks its shapes and lays out its arguments."""

    def __init__(self, isa: Isa, cache: KernelCache, threads: int) -> None:
        self.name = isa.name
        self.threads = threads
        self._cache = cache
        self._isa = isa
        cache.prepare(kernel_names.ALWAYS)
        self._launcher = Launcher(cache, threads)
        self._packer = Packer(self._launcher, isa.lanes)
        self._products = ProductLaunch(self._launcher, isa)
        self._experts = ExpertLaunch(self._launcher, self._products)
        self._neurons = NeuronLaunch(self._launcher, self._packer, self._products)
        self._attention = AttentionLaunch(self._launcher, isa.lanes)
        call_after_fork(self)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        threads: int | None,
        events: EventSink,
        directory: Path | None = None,
        names: Sequence[str] = (),
    ) -> SimdKernels:
        """See `edgerun.kernels.load_kernels`. names: of kernels that will be needed beside those that always are."""
        isa = choose(name)
        cache = KernelCache(isa, directory or paths.cache_dir() / "kernels", events)
        # At once: what is missing is compiled side by side.
        cache.prepare(kernel_names.with_forms([*kernel_names.ALWAYS, *names], isa))
        return cls(isa, cache, threads or default_threads())

    @classmethod
    def missing(cls, name: str, names: Sequence[str]) -> bool:
        """See `edgerun.kernels.kernels_missing`."""
        isa = choose(name)
        cache = KernelCache(isa, paths.cache_dir() / "kernels")
        return bool(cache.missing(kernel_names.with_forms([*kernel_names.ALWAYS, *names], isa)))

    @staticmethod
    def names(
        types: Sequence[GgmlType],
        neuron_types: Sequence[GgmlType],
        kv: tuple[KvFormat, KvFormat],
        *,
        recurrent: bool,
        streams: bool,
        mixture: bool,
        ranks: bool,
    ) -> list[str]:
        """What a model needs beside the kernels that are always needed."""
        wanted = [
            *kernel_names.for_matrices(types),
            *kernel_names.for_neurons(neuron_types),
            *kernel_names.for_keys_and_values(*kv),
        ]
        wanted += kernel_names.RECURRENT * recurrent + kernel_names.STREAMS * streams + kernel_names.MIXTURE * mixture
        wanted += kernel_names.RANKS * ranks
        return wanted

    def prepare(self, types: Sequence[GgmlType]) -> None:
        """Compile what matrices of these types need, in one go (else it happens at first use)."""
        self._cache.prepare(kernel_names.with_forms(kernel_names.for_matrices(types), self._isa))

    @property
    def origin(self) -> str:
        """Where the kernels come from, for people."""
        return self._cache.origin

    def close(self) -> None:
        self._launcher.close()

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._launcher.after_fork()
        self._attention.after_fork()

    # -- recording ----------------------------------------------------------------------------------------------

    @property
    def recording(self) -> Recording:
        return self

    def record(self) -> AbstractContextManager[Recorder]:
        """See `Launcher.record`."""
        return self._launcher.record()

    def run_program(self, program: Program, start: int = 0, end: int | None = None) -> int:
        """See `Launcher.replay`."""
        return self._launcher.replay(program, start, end)

    def lay_out_experts(self, task: TokenExperts) -> bool:
        """See `ExpertLaunch.lay_out`."""
        return self._experts.lay_out(task)

    def lay_out_sum(self, steps: I64, state: I64, numbers: int) -> None:
        """See `sum_launch`."""
        lay_out_sum(self._launcher, steps, state, numbers)

    def trace(self) -> AbstractContextManager[LaunchTrace]:
        """See `Launcher.trace`."""
        return self._launcher.trace()

    def decode_attention_scratch(self, layout: LayerLayout, heads: int, pages: int) -> tuple[int, int]:
        """See `AttentionLaunch.decode_scratch`."""
        return self._attention.decode_scratch(layout, heads, pages)

    # -- weights ------------------------------------------------------------------------------------------------

    def pack(self, raw: U8, type: GgmlType, cols: int, memory: U8 | None = None) -> Matrix:
        self.prepare([type])
        return self._packer.pack(raw, type, cols, memory)

    @property
    def layout_name(self) -> str:
        return self._packer.layout_name

    @property
    def row_group(self) -> int:
        return self._packer.lanes

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        return self._packer.packed_bytes(type, rows, cols)

    def matrix_in(self, memory: U8, type: GgmlType, rows: int, cols: int) -> Matrix:
        return self._packer.matrix_in(memory, type, rows, cols)

    def pack_rows(self, raw: U8, w: Matrix, first_row: int) -> None:
        self._packer.pack_rows(raw, w, first_row)

    # -- products -----------------------------------------------------------------------------------------------

    def activations(self, x: F32) -> Rows:
        return Rows(x, self._launcher)

    def matmul(self, w: Matrix, x: Activations, out: F32, *, add: bool = False) -> None:
        rows = _rows(x)
        self._products.run([(w, rows, 0, rows.x.shape[0], out)], add=add)

    def matmul_many(self, ws: Sequence[Matrix], x: Activations, outs: Sequence[F32]) -> None:
        rows = _rows(x)
        self._products.run([(w, rows, 0, rows.x.shape[0], out) for w, out in zip(ws, outs, strict=True)])

    def matmul_heads(self, w: Matrix, x: Activations, out: F32) -> None:
        self._products.run_heads(w, _rows(x), out)

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
        self._experts.ffn(experts, _rows(x), rows, slots, activation, out, vectors)

    def prepare_neurons(self, types: Sequence[GgmlType]) -> None:
        self._cache.prepare(kernel_names.for_neurons(types))

    def neurons_up(self, gate: F32, x: Activations, neurons: Neurons, activation: Activation, h: F32) -> None:
        self._neurons.up(gate, _rows(x), neurons, activation, h)

    def neurons_down(self, h: F32, neurons: Neurons, out: F32) -> None:
        self._neurons.down(h, neurons, out)

    # -- between the products -----------------------------------------------------------------------------------

    def combine(self, parts: F32, weights: F32, out: F32, *, add: bool = False) -> None:
        layer_launch.combine(self._launcher, parts, weights, out, add=add)

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        layer_launch.rms_norm(self._launcher, x, weight, eps, out)

    def layer_norm(self, x: F32, weight: F32, bias: F32 | None, eps: float, out: F32) -> None:
        layer_launch.layer_norm(self._launcher, x, weight, bias, eps, out)

    def affine(self, x: F32, ids: I32 | None, scale: F32 | None, bias: F32 | None) -> None:
        layer_launch.affine(self._launcher, x, ids, scale, bias)

    def copy(self, x: F32, out: F32) -> None:
        layer_launch.copy(self._launcher, x, out)

    def head_gate(self, x: F32, gate: F32, kind: GateKind) -> None:
        layer_launch.head_gate(self._launcher, x, gate, kind)

    def add(self, x: F32, y: F32) -> None:
        layer_launch.add(self._launcher, x, y)

    def scale(self, x: F32, factor: float) -> None:
        layer_launch.scale(self._launcher, x, factor)

    def rope(self, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
        layer_launch.rope(self._launcher, x, cos, sin, kind)

    def gated(self, gate: F32, up: F32 | None, activation: Gate, out: F32) -> None:
        layer_launch.gated(self._launcher, gate, up, activation, out)

    def causal_conv(
        self, u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation
    ) -> None:
        state_launch.causal_conv(self._launcher, u, weight, bias, states, out, activation)

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
        state_launch.scan(
            self._launcher, q, k, v, decay, step, states, out, rule=rule, turn=turn, scale=scale, skip=skip
        )

    def unit_heads(self, x: F32, eps: float) -> None:
        state_launch.unit_heads(self._launcher, x, eps)

    def scan_steps(self, x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
        state_launch.scan_steps(self._launcher, x, gate, bias, a, decay, step)

    def gated_norm(self, x: F32, gate: F32, weight: F32 | None, eps: float, out: F32, *, gate_first: bool) -> None:
        state_launch.gated_norm(self._launcher, x, gate, weight, eps, out, gate_first=gate_first)

    def mix_streams(self, x: F32, shares: StreamWeights, out: F32) -> None:
        stream_launch.mix_streams(self._launcher, x, shares, out)

    def correct_streams(self, x: F32, result: F32, shares: StreamWeights, out: F32, factors: F32, first: F32) -> None:
        stream_launch.correct_streams(self._launcher, x, result, shares, out, factors, first)

    def match_norms(self, x: F32, like: F32) -> None:
        stream_launch.match_norms(self._launcher, x, like)

    def above_mean(self, x: F32, deviations: float) -> None:
        stream_launch.above_mean(self._launcher, x, deviations)

    def kv_write(self, spans: Sequence[Span], k: F32, v: F32) -> None:
        self._attention.write(spans, k, v)

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
        self._attention.attend(q, spans, out, Scores(scale, softcap, window, chunked, sinks, far))

    def route(
        self, logits: F32, routing: Routing, ids: I32, weights: F32 | None = None, bias: F32 | None = None
    ) -> None:
        route_launch.route(self._launcher, logits, routing, ids, weights, bias)

    def weigh(self, x: F32, weight: F32, out: F32) -> None:
        route_launch.weigh(self._launcher, x, weight, out)

    # -- for other devices --------------------------------------------------------------------------------------

    def prepare_eighths(self) -> None:
        self._cache.prepare(kernel_names.EIGHTHS)

    def round_eighths(self, x: F32, out: U8) -> None:
        eighths_launch.round_eighths(self._launcher, x, out)

    def sum_eighths(self, parts: Sequence[U8], out: F32, rounded: U8 | None = None) -> None:
        eighths_launch.sum_eighths(self._launcher, parts, out, rounded)


def _rows(x: Activations) -> Rows:
    """What `activations` made. UsageError for those of other kernels."""
    if not isinstance(x, Rows):
        raise UsageError(f"activations must come from the kernels that multiply them, not {type(x).__name__}")
    return x
