"""The operations over packed weights, for one instruction set: shapes checked and arguments laid out in Python, the
work done by compiled kernels on all threads."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun import paths
from edgerun.device.cpu import default_threads
from edgerun.device.forks import call_after_fork
from edgerun.errors import UsageError
from edgerun.events import EventSink
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import layout
from edgerun.kernels.attention_layout import (
    TILE,
    decode_chunks,
    decode_scratch_bytes,
    keys_shape,
    prompt_scratch_bytes,
)
from edgerun.kernels.choice import choose
from edgerun.kernels.compile import KernelCache
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.formats.activations import FORMS
from edgerun.kernels.interface import F16, F32, I32, U8, Activation, Expert, Matrix, Neurons, RopeKind, RouterKind
from edgerun.kernels.isa import Isa
from edgerun.kernels.pool import ThreadPool
from edgerun.kernels.program import Program, Recorder
from edgerun.kernels.reference import ReferenceKernels, check_matmul, route

_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_DESCRIPTOR = struct.Struct("14q")
_ACTIVATIONS = {"silu": 0, "gelu": 1, "relu": 2, "relu2": 3}
_PACK = {type: f"pack_{format.name}" for type, format in FORMATS.items()}
_MATMUL = {type: (f"matmul_{format.name}", format.form) for type, format in FORMATS.items()}
_ALWAYS = (
    "pool_run",
    "pool_work",
    "pool_program",
    "add",
    "rms_norm",
    "rope",
    "kv_write",
    "gated",
    "attention_decode",
    "attention_merge",
)


def _names_for(types: Sequence[GgmlType]) -> list[str]:
    """Kernels that matrices of these types need, beside those that are always needed."""
    names = ["attention_prompt", "combine"]
    for type in types:
        if type in _MATMUL:
            matmul, form = _MATMUL[type]
            names += [_PACK[type], matmul] if form == "f32" else [_PACK[type], matmul, f"quantize_{form}"]
    return list(dict.fromkeys(names))


def _names_for_neurons(types: Sequence[GgmlType]) -> list[str]:
    names = [f"neurons_{way}_{type.name.lower()}" for way in ("up", "down") for type in types]
    if any(type in (GgmlType.Q4_0, GgmlType.Q8_0) for type in types):
        names.append("quantize_q8")
    return names


_STRUCTS = [struct.Struct(f"{count}q") for count in range(24)]
_from_buffer, _addressof = ctypes.c_char.from_buffer, ctypes.addressof


def address(array: Any) -> int:
    """Where an array's first element lies. (A quarter of the time of `array.ctypes.data`; decode asks often.)"""
    try:
        return _addressof(_from_buffer(array))
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.__array_interface__["data"][0])


@cache  # never dropped: kernels hold the addresses
def _constants(*values: float) -> tuple[int, Any]:
    """f32 constants that kernels read by address, and the array that keeps them alive."""
    array = np.array(values, np.float32)
    return address(array), array


@lru_cache(maxsize=256)
def _form_layout(kind: str, tokens: int, cols: int) -> tuple[int, int, int, int, int, int]:
    """Of quantised rows: offset of scales, of sums, size in bytes, and a row's bytes of scales, of sums, ..."""
    block, sums_bytes = FORMS[kind]
    blocks = cols // block
    scales_at = -(-tokens * cols // 64) * 64
    sums_at = scales_at + -(-tokens * blocks * 4 // 64) * 64
    return scales_at, sums_at, sums_at + tokens * blocks * sums_bytes, blocks * 4, blocks * sums_bytes, blocks


class Rows:
    """Activations (T, K) f32 and, once a format has asked, their quantised forms: (quants, scales, sums) addresses
    and row strides. The arrays are kept alive here."""

    __slots__ = ("_arrays", "_kernels", "_forms", "x")

    def __init__(self, x: F32, kernels: SimdKernels) -> None:
        if x.dtype != np.float32 or x.ndim != 2 or not x.flags.c_contiguous:
            raise UsageError(f"activations must be contiguous (T, K) float32, got {x.dtype} {x.shape}")
        self.x = x
        self._kernels = kernels
        self._forms: dict[str, tuple[int, int, int, int, int, int]] = {}
        self._arrays: list[Any] = []

    def form(self, kind: str) -> tuple[int, int, int, int, int, int]:
        """(quants, stride, scales, stride, sums, stride) for "q8", "q8k" or "f32" (then only the first two)."""
        known = self._forms.get(kind)
        if known is None:
            known = self._make(kind)
            self._forms[kind] = known
        return known

    def _make(self, kind: str) -> tuple[int, int, int, int, int, int]:
        tokens, cols = self.x.shape
        if kind == "f32":
            return address(self.x), cols * 4, 0, 0, 0, 0
        scales_at, sums_at, size, scales_bytes, sums_bytes, _ = _form_layout(kind, tokens, cols)
        memory = np.empty(size, np.uint8)
        base = address(memory)
        self._arrays.append(memory)
        if self._kernels._recorder is not None:
            self._kernels._recorder.keep(memory)
        name = "quantize_q8" if kind == "q8" else "quantize_q8k"
        self._kernels._launch(name, (address(self.x), cols, base, base + scales_at, base + sums_at), tokens, 8)
        return base, cols, base + scales_at, scales_bytes, base + sums_at, sums_bytes


class SimdKernels:
    """`interface.Kernels` in Numba, for one instruction set."""

    recordable = True

    def __init__(self, isa: Isa, cache: KernelCache, threads: int) -> None:
        self.name = isa.name
        self.threads = threads
        self._isa = isa
        self._cache = cache
        cache.prepare(_ALWAYS)
        self._pool = ThreadPool(
            threads, cache.address("pool_run"), cache.address("pool_work"), cache.address("pool_program"), cache
        )
        self._reference = ReferenceKernels()
        self._lock = threading.RLock()
        self._functions: dict[str, Any] = {}
        self._arguments: Any = np.zeros(1 << 16, np.uint8)
        self._at = address(self._arguments)
        self._scratch = np.zeros(0, np.float32)
        self._busy = np.zeros(threads + 1, np.int64)
        self._together = max(isa.many[1], isa.few[1], isa.one)
        self._recorder: Recorder | None = None
        self._expert_programs: dict[Any, tuple[Program, F32, NDArray[np.int64], NDArray[np.int64]]] = {}
        call_after_fork(self)

    @classmethod
    def load(
        cls,
        name: str,
        *,
        threads: int | None,
        events: EventSink,
        directory: Path | None = None,
        types: Sequence[GgmlType] = (),
        neuron_types: Sequence[GgmlType] = (),
    ) -> SimdKernels:
        """See `edgerun.kernels.load_kernels`."""
        isa = choose(name)
        cache = KernelCache(isa, directory or paths.cache_dir() / "kernels", events)
        wanted = [*_names_for(types), *_names_for_neurons(neuron_types)] if types else []
        cache.prepare([*_ALWAYS, *wanted])  # at once: what is missing is compiled side by side
        return cls(isa, cache, threads or default_threads())

    @classmethod
    def missing(cls, name: str, types: Sequence[GgmlType], neuron_types: Sequence[GgmlType]) -> bool:
        """See `edgerun.kernels.kernels_missing`."""
        cache = KernelCache(choose(name), paths.cache_dir() / "kernels")
        return bool(cache.missing([*_ALWAYS, *_names_for(types), *_names_for_neurons(neuron_types)]))

    def prepare(self, types: Sequence[GgmlType]) -> None:
        """Compile what matrices of these types need, in one go (else it happens at first use)."""
        self._cache.prepare(_names_for(types))

    @property
    def origin(self) -> str:
        """Where the kernels come from, for people."""
        return self._cache.origin

    def close(self) -> None:
        self._pool.close()

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._lock = threading.RLock()
        self._recorder = None
        self._busy[:] = 0
        self._pool.after_fork()

    # -- recording ----------------------------------------------------------------------------------------------

    @contextmanager
    def record(self) -> Iterator[Recorder]:
        """Launches within are done and also noted: see `program`. One thread at a time, no other users meanwhile."""
        self._recorder = recorder = Recorder()
        try:
            yield recorder
        finally:
            self._recorder = None

    def run_program(self, program: Program, start: int = 0, end: int | None = None) -> None:
        """Replay launches start .. end - 1."""
        end = program.count if end is None else end
        with self._lock:
            self._recorder = None  # Ctrl-C may have left one behind
            self._pool.run_program(program.rows_address + 32 * start, end - start)

    def decode_attention_scratch(self, heads: int, chunks: int, dim_v: int) -> tuple[int, int]:
        """Of `attention` for one token: addresses of the threads' slots, of the chunks' parts."""
        slots = decode_scratch_bytes() // 4 * self.threads
        scratch = self._floats(slots + heads * chunks * (dim_v + 2))
        return scratch, scratch + 4 * slots

    # -- weights ------------------------------------------------------------------------------------------------

    def pack(self, raw: U8, type: GgmlType, cols: int, memory: U8 | None = None) -> Matrix:
        if type not in _MATMUL:
            return self._reference.pack(raw, type, cols, memory)
        if raw.ndim != 2 or raw.shape[1] != type.row_bytes(cols) or raw.dtype != np.uint8:
            raise UsageError(f"{raw.shape} {raw.dtype} are not {type.name} rows of {cols} weights")
        self.prepare([type])
        lanes, rows, blocks = self._isa.lanes, raw.shape[0], cols // type.block_size
        groups = -(-rows // lanes)
        shape = (groups, blocks, type.block_bytes * lanes)
        out = np.empty(shape, np.uint8) if memory is None else memory.reshape(shape)
        raw = np.ascontiguousarray(raw)
        arguments = (address(raw), raw.shape[1], rows, address(out), blocks)
        self._launch(_PACK[type], arguments, groups, max(1, 64 // lanes))
        return Matrix(rows, cols, type, self.layout_name, out)

    @property
    def layout_name(self) -> str:
        return layout.layout_name(self._isa.lanes)

    @property
    def row_group(self) -> int:
        return self._isa.lanes

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int:
        return layout.PackedSizes(self._isa.lanes).packed_bytes(type, rows, cols)

    def matrix_in(self, memory: U8, type: GgmlType, rows: int, cols: int) -> Matrix:
        if type not in _MATMUL:
            return self._reference.matrix_in(memory, type, rows, cols)
        return Matrix(rows, cols, type, self.layout_name, memory)

    def pack_rows(self, raw: U8, w: Matrix, first_row: int) -> None:
        if w.layout == "gguf":
            self._reference.pack_rows(raw, w, first_row)
            return
        lanes, rows = self._isa.lanes, raw.shape[0]
        ragged = rows % lanes and first_row + rows != w.rows
        whole = raw.dtype == np.uint8 and raw.shape == (rows, w.type.row_bytes(w.cols)) and w.layout == self.layout_name
        if first_row < 0 or first_row % lanes or ragged or first_row + rows > w.rows or not whole:
            raise UsageError(
                f"cannot pack {raw.shape} {raw.dtype} at row {first_row} of {w.rows} x {w.cols} {w.type.name}"
            )
        blocks = w.cols // w.type.block_size
        target = w.address + first_row // lanes * blocks * w.type.block_bytes * lanes
        raw = np.ascontiguousarray(raw)
        arguments = (ctypes.c_int64 * 5)(address(raw), raw.shape[1], rows, target, blocks)
        self._function(_PACK[w.type])(ctypes.addressof(arguments), 0, -(-rows // lanes))

    # -- products -----------------------------------------------------------------------------------------------

    def activations(self, x: F32) -> Rows:
        return Rows(x, self)

    def matmul(self, w: Matrix, x: Any, out: F32, *, add: bool = False) -> None:
        self._products([(w, x, 0, x.x.shape[0], out)], add)

    def matmul_many(self, ws: Sequence[Matrix], x: Any, outs: Sequence[F32]) -> None:
        self._products([(w, x, 0, x.x.shape[0], out) for w, out in zip(ws, outs, strict=True)], False)

    def _products(self, jobs: Sequence[tuple[Matrix, Any, int, int, F32]], add: bool) -> None:
        """Jobs (weights, rows, first row, number of rows, out) of any formats: one launch for each format."""
        by_kernel: dict[str, list[tuple[int, ...]]] = {}
        lanes = self._isa.lanes
        with self._lock:
            for w, x, first, tokens, out in jobs:
                if w.layout == "gguf":
                    self._plain_product(w, x, first, tokens, out, add)
                    continue
                if x.x.shape[1] != w.cols or out.shape != (tokens, w.rows) or not out.flags.c_contiguous:
                    check_matmul(w, x.x[first : first + tokens], out)
                name, form = _MATMUL[w.type]
                quants, dq, scales, ds, sums, dc = x.form(form)
                blocks = w.cols // w.type.block_size
                stride = 4 * w.rows
                weights, target = w.address, address(out)
                at_once = layout.rows_at_once(w.cols)
                for low in range(0, tokens, at_once):
                    row = first + low
                    by_kernel.setdefault(name, []).append(
                        (
                            -(-w.rows // lanes),
                            weights,
                            target + low * stride,
                            min(at_once, tokens - low),
                            blocks,
                            w.rows,
                            stride,
                            int(add),
                            quants + row * dq,
                            dq,
                            scales + row * ds,
                            ds,
                            sums + row * dc,
                            dc,
                        )
                    )
            for name, descriptors in by_kernel.items():
                self._launch_products(name, descriptors)

    def _launch_products(self, name: str, descriptors: list[tuple[int, ...]]) -> None:
        needed = 128 * (len(descriptors) + 1)
        if needed > self._arguments.nbytes:
            self._arguments = np.zeros(2 * needed, np.uint8)
            self._at = address(self._arguments)
        item = 0
        _STRUCTS[1].pack_into(self._arguments, 0, len(descriptors))
        for index, (groups, *rest) in enumerate(descriptors):
            _DESCRIPTOR.pack_into(self._arguments, 128 * (index + 1), item, *rest)
            item += groups
        grain = max(1, min(16, item // (self.threads * 8)) // self._together) * self._together
        kernel = self._cache.address(name)
        if self._recorder is not None:
            self._recorder.add(name, kernel, bytes(self._arguments[: 128 * (len(descriptors) + 1)]), item, grain)
        self._pool.run(kernel, self._at, item, grain)

    def _plain_product(self, w: Matrix, x: Any, first: int, tokens: int, out: F32, add: bool) -> None:
        if self._recorder is not None:
            self._recorder.spoil("a product in numpy")
        plain = self._reference.activations(x.x[first : first + tokens])
        self._reference.matmul(w, plain, out, add=add)

    def experts_ffn(
        self,
        experts: Sequence[Expert],
        x: Any,
        rows: Sequence[I32],
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
    ) -> None:
        if not experts:
            return
        if x.x.shape[0] == 1 and self._alike(experts) and (self._recorder is None or self._recorder.is_paused):
            self._single_token_ffn(experts, x, slots, activation, out)
            return
        counts = [len(row) for row in rows]
        total, ff = sum(counts), experts[0].gate.rows
        gate = np.empty((total, ff), np.float32)
        up = np.empty((total, ff), np.float32)
        tokens = x.x.shape[0]
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        if tokens == 1:  # every expert works on the one row
            source, offsets = x, [0] * len(experts)
        else:
            source, offsets = self.activations(x.x[np.concatenate(rows)]), starts
        jobs: list[tuple[Matrix, Any, int, int, F32]] = []
        for index, expert in enumerate(experts):
            low, high = starts[index], starts[index + 1]
            jobs.append((expert.gate, source, offsets[index], high - low, gate[low:high]))
            jobs.append((expert.up, source, offsets[index], high - low, up[low:high]))
        self._products(jobs, False)
        self.gated(gate, up, activation, gate)
        hidden = self.activations(gate)
        result = np.empty((total, out.shape[1]), np.float32)
        self._products(
            [
                (expert.down, hidden, starts[i], starts[i + 1] - starts[i], result[starts[i] : starts[i + 1]])
                for i, expert in enumerate(experts)
            ],
            False,
        )
        out[np.concatenate(slots)] = result

    @staticmethod
    def _alike(experts: Sequence[Expert]) -> bool:
        """Whether all are packed, of the same formats and sizes."""
        first = experts[0]
        return (
            first.gate.type == first.up.type
            and first.gate.type in _MATMUL
            and first.down.type in _MATMUL
            and all(expert.kind == first.kind for expert in experts)
        )

    def _single_token_ffn(
        self, experts: Sequence[Expert], x: Any, slots: Sequence[I32], activation: Activation, out: F32
    ) -> None:
        """`experts_ffn` of one row: recorded once for each number of experts, then only told where these lie. Laying
        the launches out anew takes as long as a tenth of the computing."""
        gate, down = experts[0].gate, experts[0].down
        count, ff, d = len(experts), gate.rows, down.rows
        if x.x.shape[1] != gate.cols or out.shape[1] != d or not out.flags.c_contiguous:
            raise UsageError(f"experts of {gate.cols} x {ff} x {d} do not fit {x.x.shape} and {out.shape}")
        places = [int(slot[0]) for slot in slots]
        if len(places) != count or min(places) < 0 or max(places) >= len(out):
            raise UsageError(f"{count} experts cannot write to rows {places} of {len(out)}")
        key = (count, gate.type, down.type, gate.cols, ff, d, activation)
        with self._lock:
            known = self._expert_programs.get(key)
            if known is None:
                known = self._expert_programs[key] = self._record_experts(experts, x.x, slots, activation, out)
            program, row, front, back = known
            row[:] = x.x
            front[:count, 1] = [each.gate.address for each in experts]
            front[count:, 1] = [each.up.address for each in experts]
            back[:, 1] = [each.down.address for each in experts]
            target = address(out)
            back[:, 2] = [target + 4 * d * place for place in places]
            self._pool.run_program(program.rows_address, program.count)

    def _record_experts(
        self, experts: Sequence[Expert], x: F32, slots: Sequence[I32], activation: Activation, out: F32
    ) -> tuple[Program, F32, NDArray[np.int64], NDArray[np.int64]]:
        """The program, its input (1, d), and the descriptors of its products: gate and up, down."""
        row, outer = x.copy(), self._recorder
        self._recorder = recorder = Recorder()
        try:
            self._lay_out_experts(experts, Rows(row, self), slots, activation, out)
        finally:
            self._recorder = outer
        recorder.keep(row)
        program = recorder.program()
        front = program.find(_MATMUL[experts[0].gate.type][0])[0]
        back = program.find(_MATMUL[experts[0].down.type][0])[-1]
        count = len(experts)
        return program, row, program.descriptors(int(front), 2 * count), program.descriptors(int(back), count)

    def _lay_out_experts(
        self, experts: Sequence[Expert], x: Rows, slots: Sequence[I32], activation: Activation, out: F32
    ) -> None:
        """`experts_ffn` of one row, launch by launch."""
        gate, down = experts[0].gate, experts[0].down
        count, ff, d = len(experts), gate.rows, down.rows
        hidden = np.empty((2, count, ff), np.float32)
        if self._recorder is not None:
            self._recorder.keep(hidden)
        at = address(hidden)
        with self._lock:
            form = x.form(_MATMUL[gate.type][1])
            jobs = [
                (weights.address, at + 4 * ff * (count * second + i))
                for second in (0, 1)
                for i, weights in enumerate([e.up if second else e.gate for e in experts])
            ]
            self._launch_alike(gate, jobs, form, 0)
            self.gated(hidden[0], hidden[1], activation, hidden[0])
            rows = self.activations(hidden[0])
            form = rows.form(_MATMUL[down.type][1])
            target = address(out)
            jobs = [(e.down.address, target + 4 * d * int(slot[0])) for e, slot in zip(experts, slots, strict=True)]
            self._launch_alike(down, jobs, form, 1)

    def _launch_alike(
        self, like: Matrix, jobs: Sequence[tuple[int, int]], form: tuple[int, int, int, int, int, int], step: int
    ) -> None:
        """One row times each (weights, out); job i takes row i * step of the activations."""
        quants, dq, scales, ds, sums, dc = form
        blocks = like.cols // like.type.block_size
        groups = -(-like.rows // self._isa.lanes)
        self._launch_products(
            _MATMUL[like.type][0],
            [
                (
                    *(groups, weights, target, 1, blocks, like.rows, 4 * like.rows, 0),
                    *(quants + i * step * dq, dq, scales + i * step * ds, ds, sums + i * step * dc, dc),
                )
                for i, (weights, target) in enumerate(jobs)
            ],
        )

    def prepare_neurons(self, types: Sequence[GgmlType]) -> None:
        self._cache.prepare(_names_for_neurons(types))

    def neurons_up(self, gate: F32, x: Any, neurons: Neurons, activation: Activation, h: F32) -> None:
        (tokens, ff), n = gate.shape, len(neurons.ids)
        if not n:
            return
        if (
            h.shape != gate.shape
            or x.x.shape != (tokens, neurons.cols)
            or neurons.ids.max() >= ff
            or activation not in ("relu", "relu2")
        ):
            raise UsageError(f"neurons of {x.x.shape} under gates {gate.shape}, {activation}, into {h.shape}")
        form = "f32" if neurons.up_type in (GgmlType.F32, GgmlType.F16) else "q8"
        rows, stride, scales, scales_stride, _, _ = x.form(form)
        arguments = (
            *(address(gate), address(h), ff, tokens, address(neurons.ids), address(neurons.slots)),
            *(address(neurons.memory), neurons.memory.shape[1], neurons.cols // 32),
            *(rows, stride, scales, scales_stride, int(activation == "relu2")),
        )
        self._launch(f"neurons_up_{neurons.up_type.name.lower()}", arguments, n, max(1, min(64, n // 8)))

    def neurons_down(self, h: F32, neurons: Neurons, out: F32) -> None:
        (tokens, ff), n = h.shape, len(neurons.ids)
        if not n:
            return
        if out.shape != (tokens, neurons.cols) or neurons.ids.max() >= ff:
            raise UsageError(f"neurons of {neurons.cols} columns, {ff} in all, into {out.shape}")
        up_bytes = neurons.up_type.row_bytes(neurons.cols)
        arguments = (
            *(address(h), ff, tokens, address(neurons.ids), address(neurons.slots)),
            *(address(neurons.memory) + up_bytes, neurons.memory.shape[1], n, address(out), neurons.cols),
        )
        items = -(-neurons.cols // layout.NEURON_SLICE)
        self._launch(f"neurons_down_{neurons.down_type.name.lower()}", arguments, items, max(1, items // 16))

    def combine(self, parts: F32, weights: F32, out: F32, *, add: bool = False) -> None:
        tokens, k = weights.shape
        weights = np.ascontiguousarray(weights, np.float32)
        arguments = (address(parts), address(weights), address(out), k, out.shape[1], int(add))
        self._launch("combine", arguments, tokens, 4)

    # -- between the products -----------------------------------------------------------------------------------

    def rms_norm(self, x: F32, weight: F32, eps: float, out: F32) -> None:
        cols = weight.shape[0]
        if x.shape[-1] != cols or out.shape != x.shape:
            raise UsageError(f"rms_norm of {x.shape} with a weight of {cols} into {out.shape}")
        arguments = (address(x), address(weight), address(out), cols, _constants(eps)[0])
        self._launch("rms_norm", arguments, x.size // cols, 8)

    def add(self, x: F32, y: F32) -> None:
        cols = x.shape[-1]
        if y.shape not in (x.shape, (cols,)) or not (x.flags.c_contiguous and y.flags.c_contiguous):
            raise UsageError(f"cannot add {y.shape} to {x.shape}")
        stride = 0 if y.ndim == 1 else 4 * cols
        self._launch("add", (address(x), address(y), cols, stride), x.size // cols, 16)

    def scale(self, x: F32, factor: float) -> None:
        if self._recorder is not None:
            self._recorder.spoil("scale")
        x *= np.float32(factor)

    def rope(self, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
        tokens, heads, dim = x.shape
        arguments = (address(x), heads, dim, address(cos), address(sin), cos.shape[1], int(kind == "neox"))
        self._launch("rope", arguments, tokens, 4)

    def kv_write(self, keys: F16, values: F16, k: F32, v: F32, start: int) -> None:
        (tokens, heads, dim), dim_v, room = k.shape, v.shape[2], values.shape[1]
        fits = keys.shape == keys_shape(heads, room, dim) and values.shape[::2] == (heads, dim_v)
        if start < 0 or start + tokens > room or v.shape[:2] != (tokens, heads) or not fits:
            raise UsageError(
                f"cannot write {k.shape}, {v.shape} at {start} of keys {keys.shape}, values {values.shape}"
            )
        cache = (address(keys), address(values), keys.strides[0], values.strides[0], start)
        arguments = (*cache, address(k), address(v), tokens, heads, dim, dim_v)
        self._launch("kv_write", arguments, heads, heads if tokens < 16 else 1)

    def attention(
        self,
        q: F32,
        k: F16,
        v: F16,
        start: int,
        out: F32,
        *,
        scale: float,
        softcap: float = 0.0,
        window: int = 0,
    ) -> None:
        tokens, heads, dim = q.shape
        kv_heads, dim_v = k.shape[0], v.shape[2]
        fits = k.shape == keys_shape(kv_heads, v.shape[1], dim) and start + tokens <= v.shape[1]
        if heads % kv_heads or not fits or out.shape != (tokens, heads, dim_v):
            raise UsageError(
                f"attention of {q.shape} over keys {k.shape}, values {v.shape} at {start} into {out.shape}"
            )
        group = heads // kv_heads
        constants, _ = _constants(scale, softcap)
        end = start + tokens
        head: tuple[int, ...] = (
            address(q),
            address(k),
            address(v),
            k.strides[0],
            v.strides[0],
            dim,
            dim_v,
            heads,
            group,
        )
        with self._lock:
            if tokens == 1:
                first = max(0, end - window) if window else 0
                chunks = decode_chunks(first, end)
                scratch, parts = self.decode_attention_scratch(heads, chunks, dim_v)
                slots = (address(self._busy), decode_scratch_bytes())
                arguments = (*head, first, end, constants, scratch, parts, *slots, chunks)
                self._launch("attention_decode", arguments, kv_heads * chunks, 1)
                self._launch("attention_merge", (parts, chunks, dim_v, address(out)), heads, heads)
                return
            slot_bytes = prompt_scratch_bytes(dim, dim_v, group, self._isa.lanes)
            scratch = self._floats(slot_bytes // 4 * self.threads)
            head = (*head, 0, end, constants, scratch, address(out))
            tail = (address(self._busy), slot_bytes, tokens, window, start)
            self._launch("attention_prompt", (*head, *tail), -(-tokens // TILE) * kv_heads, 1)

    def _floats(self, count: int) -> int:
        if self._scratch.size < count:
            self._scratch = np.empty(count + 16, np.float32)
        return address(self._scratch)

    def gated(self, gate: F32, up: F32, activation: Activation, out: F32) -> None:
        if activation not in _ACTIVATIONS:
            raise UsageError(f"unknown activation {activation!r}; choose one of {', '.join(_ACTIVATIONS)}")
        tokens, cols = gate.shape
        arguments = (address(gate), address(up), address(out), cols, _ACTIVATIONS[activation])
        self._launch("gated", arguments, tokens, 4)

    def route(
        self, logits: F32, k: int, kind: RouterKind, *, renormalise: bool, scale: float = 1.0, bias: F32 | None = None
    ) -> tuple[I32, F32]:
        return route(logits, k, kind, renormalise=renormalise, scale=scale, bias=bias)

    def _function(self, name: str) -> Any:
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = _KERNEL(self._cache.address(name))
        return function

    def _launch(self, name: str, arguments: tuple[int, ...], items: int, grain: int) -> None:
        """Small work runs on the caller alone: waking the others would cost more."""
        with self._lock:
            _STRUCTS[len(arguments)].pack_into(self._arguments, 0, *arguments)
            if self._recorder is not None:
                packed = bytes(self._arguments[: 8 * len(arguments)])
                self._recorder.add(name, self._cache.address(name), packed, items, grain)
            if items <= grain:
                self._function(name)(self._at, 0, items)
            else:
                self._pool.run(self._cache.address(name), self._at, items, grain)
