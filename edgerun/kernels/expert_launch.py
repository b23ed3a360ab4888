"""The feed-forwards of a mixture's experts.

Many rows go launch by launch. One row goes by a program that is laid out once for each number of experts and then only
told where these lie, since laying the launches out anew takes as long as a tenth of the computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import Affine, FindExperts, Product, slot_of
from edgerun.kernels.interface import F32, I32, NO_VECTORS, Activation, Expert, ExpertVectors, Matrix
from edgerun.kernels.kernel_names import MATRIX_KERNELS, QUANTIZE
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layer_launch import AFFINE_GRAIN, GATED_GRAIN, affine, affine_arguments, gated, gated_arguments
from edgerun.kernels.memory import address
from edgerun.kernels.product_launch import Job, ProductLaunch
from edgerun.kernels.program import I64, Launch, Patch, Program
from edgerun.kernels.recording import TokenExperts
from edgerun.kernels.rows import QUANTIZE_GRAIN, Form, Rows, plain, quantised

_WEIGHTS, _OUT = slot_of(Product, "weights"), slot_of(Product, "out")
_SCALE, _BIAS = slot_of(Affine, "scale"), slot_of(Affine, "bias")


@dataclass(frozen=True, eq=False)
class _ExpertProgram:
    """Some experts, all alike, of one row: what is written before the program runs."""

    program: Program
    row: F32  # (1, d)
    ids: I32  # (experts,)
    front: I64  # (experts, or 2 * experts, slots of a `Product`): gates, if there are some, then ups
    back: I64  # (experts, slots): downs
    vectors: Patch | None  # addresses of factors and biases of gates, then of ups


class _ExpertLaunches(NamedTuple):
    """Of some experts, all alike, of one row. front, back: which of them multiplies the input with so many `matrices`,
    and which gives the results; patched: see `_patch`."""

    launches: list[Launch]
    kept: list[object]
    front: int
    matrices: int
    back: int
    patched: list[tuple[int, int]]


class ExpertLaunch:
    """`interface.Kernels.experts_ffn`."""

    def __init__(self, launcher: Launcher, products: ProductLaunch) -> None:
        self._launcher = launcher
        self._products = products
        self._programs: dict[tuple[object, ...], _ExpertProgram] = {}

    def ffn(
        self,
        experts: Sequence[Expert],
        x: Rows,
        rows: Sequence[I32],
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
        vectors: ExpertVectors = NO_VECTORS,
    ) -> None:
        """See `interface.Kernels.experts_ffn`."""
        self._launcher.spoil("experts, which are others for every token")
        if not experts:
            return
        if any((each.gate is None) != (experts[0].gate is None) for each in experts):
            raise UsageError("experts with and without gates cannot be computed together")
        if x.x.shape[0] == 1 and _alike(experts):
            self._one_row(experts, x.x, slots, activation, out, vectors)
        else:
            self._many_rows(experts, x, rows, slots, activation, out, vectors)

    def _many_rows(
        self,
        experts: Sequence[Expert],
        x: Rows,
        rows: Sequence[I32],
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
        vectors: ExpertVectors,
    ) -> None:
        counts = [len(row) for row in rows]
        total, ff = sum(counts), experts[0].up.rows
        gate, up = (np.empty((total, ff), np.float32) for _ in range(2))
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        if x.x.shape[0] == 1:  # every expert works on the one row
            source, offsets = x, [0] * len(experts)
        else:
            source, offsets = Rows(x.x[np.concatenate(rows)], self._launcher), starts
        jobs: list[Job] = []
        for index, expert in enumerate(experts):
            low, high = starts[index], starts[index + 1]
            if expert.gate is not None:
                jobs.append((expert.gate, source, offsets[index], high - low, gate[low:high]))
            jobs.append((expert.up, source, offsets[index], high - low, up[low:high]))
        self._products.run(jobs)
        gated_ones, ids = experts[0].gate is not None, np.repeat([each.id for each in experts], counts).astype(np.int32)
        if gated_ones and vectors.gate is not None:
            affine(self._launcher, gate, ids, *vectors.gate)
        if vectors.up is not None:
            affine(self._launcher, up, ids, *vectors.up)
        if gated_ones:
            gated(self._launcher, gate, up, activation, up)
        else:
            gated(self._launcher, up, None, activation, up)
        hidden = Rows(up, self._launcher)
        result = np.empty((total, out.shape[1]), np.float32)
        self._products.run(
            [
                (expert.down, hidden, starts[i], starts[i + 1] - starts[i], result[starts[i] : starts[i + 1]])
                for i, expert in enumerate(experts)
            ]
        )
        out[np.concatenate(slots)] = result

    def _one_row(
        self,
        experts: Sequence[Expert],
        x: F32,
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
        vectors: ExpertVectors,
    ) -> None:
        up, down = experts[0].up, experts[0].down
        count, ff, d = len(experts), up.rows, down.rows
        if x.shape[1] != up.cols or out.shape[1] != d or not out.flags.c_contiguous:
            raise UsageError(f"experts of {up.cols} x {ff} x {d} do not fit {x.shape} and {out.shape}")
        places = [int(slot[0]) for slot in slots]
        if len(places) != count or min(places) < 0 or max(places) >= len(out):
            raise UsageError(f"{count} experts cannot write to rows {places} of {len(out)}")
        ids = [each.id for each in experts]
        _check_entries(vectors, max(ids), ff)
        present = tuple(
            each is not None for each in (vectors.gate_scale, vectors.gate_bias, vectors.up_scale, vectors.up_bias)
        )
        key = (count, experts[0].kind, activation, present)
        with self._launcher.lock:
            known = self._programs.get(key)
            if known is None:
                known = self._programs[key] = self._laid_out(experts, activation, vectors)
            known.row[:] = x
            known.ids[:] = ids
            known.front[:, _WEIGHTS] = [each.address for each in _first_matrices(experts)]
            known.back[:, _WEIGHTS] = [each.down.address for each in experts]
            target = address(out)
            known.back[:, _OUT] = [target + 4 * d * place for place in places]
            if known.vectors is not None:
                known.vectors.write(*_addresses(vectors))
            self._launcher.run_program(known.program)

    def _laid_out(self, experts: Sequence[Expert], activation: Activation, vectors: ExpertVectors) -> _ExpertProgram:
        """For experts like these. Where the results go is not known yet."""
        row, ids = np.zeros((1, experts[0].up.cols), np.float32), np.zeros(len(experts), np.int32)
        made = self._launches(experts, row, ids, activation, vectors, [0] * len(experts))
        program = Program(made.launches, [*made.kept, row, ids])
        fronts, backs = program.products(made.front, made.matrices), program.products(made.back, len(experts))
        return _ExpertProgram(program, row, ids, fronts, backs, _patch(program, made.patched))

    def lay_out(self, task: TokenExperts) -> bool:
        """See `recording.Recording.lay_out_experts`."""
        first, used, d = task.where.first, len(task.ids), task.out.shape[1]
        like = [first] * used
        if not _alike(like):
            return False
        experts, matrices = len(task.where.places), len(first.matrices)
        arrays = (task.ids, task.found, task.x, task.out, task.where.places)
        if (
            task.x.shape != (1, first.up.cols)
            or task.out.shape != (used, first.down.rows)
            or task.found.shape != (1 + used * (1 + len(task.guesses)),)
            or len(task.where.strides) != matrices
            or any(each.ids.shape != (used,) for each in task.guesses)
            or not all(each.flags.c_contiguous for each in arrays)
        ):
            raise UsageError(
                f"{used} of {experts} experts of {first.up.cols} columns do not fit {task.x.shape} and {d}"
            )
        _check_entries(task.vectors, experts - 1, first.up.rows)
        made = self._launches(like, task.x, task.ids, task.activation, task.vectors, _rows_of(task.out))
        find, start = self._launcher, self._launcher.noted
        nothing = FindExperts(*[0] * len(FindExperts._fields))
        find.note(find.laid_out("find_experts", nothing, 1, 1))
        for launch in made.launches:
            find.note(launch)
        guesses = np.array([(each.ids.ctypes.data, each.places.ctypes.data) for each in task.guesses], np.int64)
        for memory in (*made.kept, task, guesses):
            find.keep(memory)

        def placed(program: Program) -> None:
            fronts = program.products(start + 1 + made.front, made.matrices)
            backs = program.products(start + 1 + made.back, used)
            arguments = _find_arguments(task, fronts, backs, guesses, find.halt_address)
            program.arguments(start, len(arguments))[:] = np.array(arguments, np.int64)

        find.placed(placed)
        return True

    def _launches(
        self,
        experts: Sequence[Expert],
        row: F32,
        ids: I32,
        activation: Activation,
        vectors: ExpertVectors,
        results: Sequence[int],
    ) -> _ExpertLaunches:
        """Of experts like these, of one row (1, d). results: addresses of each one's (d,)."""
        up, down = experts[0].up, experts[0].down
        count, ff, gates = len(experts), up.rows, experts[0].gate is not None
        matrices = _first_matrices(experts)
        hidden = np.zeros((len(matrices), ff), np.float32)  # gates, if there are some, then ups
        launches: list[Launch] = []
        kept: list[object] = [hidden]

        def lay_out_form(x: F32, kind: str) -> Form:
            if kind == "f32":
                return plain(x)
            form, memory, arguments = quantised(x, kind)
            kept.append(memory)
            launches.append(self._launcher.laid_out(QUANTIZE[kind], arguments, len(x), QUANTIZE_GRAIN))
            return form

        first = lay_out_form(row, self._products.form(up.type))
        outs = [address(hidden) + 4 * ff * index for index in range(len(matrices))]
        front = len(launches)
        launches.append(self._products.laid_out(matrices, [first] * len(matrices), outs))
        patched: list[tuple[int, int]] = []  # (launch, the first of its two addresses in `_addresses`)
        for part, which, values in (
            (hidden[:count], vectors.gate if gates else None, 0),
            (hidden[-count:], vectors.up, 2),
        ):
            if which is not None:
                patched.append((len(launches), values))
                arguments = affine_arguments(part, None, *which)._replace(ids=address(ids))
                launches.append(self._launcher.laid_out("affine", arguments, count, AFFINE_GRAIN))
        ups = hidden[-count:]
        activated = gated_arguments(hidden[:count], ups if gates else None, activation, ups)
        launches.append(self._launcher.laid_out("gated", activated, count, GATED_GRAIN))
        second = lay_out_form(ups, self._products.form(down.type))
        back = len(launches)
        rows = [second.row(index) for index in range(count)]
        launches.append(self._products.laid_out([each.down for each in experts], rows, results))
        return _ExpertLaunches(launches, kept, front, len(matrices), back, patched)


def _find_arguments(task: TokenExperts, fronts: I64, backs: I64, guesses: I64, halt: int) -> FindExperts:
    """fronts, backs: the `Product`s that are told; guesses: see `FindExperts`."""
    where, bases = task.where, [matrix.address for matrix in task.where.first.matrices]
    pairs = [*zip(bases, where.strides, strict=True)]
    gate, up, down = pairs if len(pairs) == 3 else ((0, 0), *pairs)
    at = [int(each.ctypes.data) for each in (task.ids, where.places, task.found, fronts, backs, where.wanted, guesses)]
    ids, places, found, first, last, wanted, guessed = at
    parts = (*gate, *up, *down)
    return FindExperts(ids, len(task.ids), places, found, halt, first, last, *parts, wanted, guessed, len(guesses))


def _rows_of(out: F32) -> list[int]:
    """Addresses."""
    return [address(out) + out.strides[0] * row for row in range(len(out))]


def _patch(program: Program, patched: list[tuple[int, int]]) -> Patch | None:
    """Of the factors' and biases' addresses in these launches."""
    if not patched:
        return None
    places = [
        (program.argument_places(np.array([launch]), slot), np.array([value + offset]))
        for launch, value in patched
        for offset, slot in enumerate((_SCALE, _BIAS))
    ]
    return program.patch(places, 4)


def _addresses(vectors: ExpertVectors) -> tuple[int, ...]:
    """Of factors and biases of gates, then of ups; 0: none."""
    each = (vectors.gate_scale, vectors.gate_bias, vectors.up_scale, vectors.up_bias)
    return tuple(0 if array is None else address(array) for array in each)


def _check_entries(vectors: ExpertVectors, highest: int, ff: int) -> None:
    """UsageError unless there are factors and biases of all experts up to `highest`."""
    for scale, bias in (vectors.gate or (None, None), vectors.up or (None, None)):
        short = (scale is not None and (scale.ndim != 1 or len(scale) <= highest)) or (
            bias is not None and (bias.ndim != 2 or len(bias) <= highest or bias.shape[1] != ff)
        )
        if short or (bias is not None and not bias.flags.c_contiguous):
            raise UsageError(f"factors or biases of the experts do not reach expert {highest} of {ff} neurons")


def _first_matrices(experts: Sequence[Expert]) -> list[Matrix]:
    """Those that the input is multiplied with: gates, then ups."""
    return [*(each.gate for each in experts if each.gate is not None), *(each.up for each in experts)]


def _alike(experts: Sequence[Expert]) -> bool:
    """Whether all are packed, of the same formats and sizes."""
    first = experts[0]
    return (
        (first.gate is None or first.gate.type == first.up.type)
        and first.up.type in MATRIX_KERNELS
        and first.down.type in MATRIX_KERNELS
        and all(expert.kind == first.kind for expert in experts)
    )
