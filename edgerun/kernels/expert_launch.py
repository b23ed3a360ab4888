"""The feed-forwards of a mixture's experts.

Many rows go launch by launch. One row goes by a program that is laid out once for each number of experts and then only
told where these lie, since laying the launches out anew takes as long as a tenth of the computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import Product, slot_of
from edgerun.kernels.interface import F32, I32, Activation, Expert
from edgerun.kernels.kernel_names import MATRIX_KERNELS, QUANTIZE
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layer_launch import GATED_GRAIN, gated, gated_arguments
from edgerun.kernels.memory import address
from edgerun.kernels.product_launch import Job, ProductLaunch
from edgerun.kernels.program import I64, Launch, Program
from edgerun.kernels.rows import QUANTIZE_GRAIN, Form, Rows, plain, quantised

_WEIGHTS, _OUT = slot_of(Product, "weights"), slot_of(Product, "out")


@dataclass(frozen=True, eq=False)
class _ExpertProgram:
    """Some experts, all alike, of one row: what is written before the program runs."""

    program: Program
    row: F32  # (1, d)
    front: I64  # (2 * experts, slots of a `Product`): gates, then ups
    back: I64  # (experts, slots): downs


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
    ) -> None:
        """See `interface.Kernels.experts_ffn`."""
        self._launcher.spoil("experts, which are others for every token")
        if not experts:
            return
        if x.x.shape[0] == 1 and _alike(experts):
            self._one_row(experts, x.x, slots, activation, out)
        else:
            self._many_rows(experts, x, rows, slots, activation, out)

    def _many_rows(
        self,
        experts: Sequence[Expert],
        x: Rows,
        rows: Sequence[I32],
        slots: Sequence[I32],
        activation: Activation,
        out: F32,
    ) -> None:
        counts = [len(row) for row in rows]
        total, ff = sum(counts), experts[0].gate.rows
        gate = np.empty((total, ff), np.float32)
        up = np.empty((total, ff), np.float32)
        starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        if x.x.shape[0] == 1:  # every expert works on the one row
            source, offsets = x, [0] * len(experts)
        else:
            source, offsets = Rows(x.x[np.concatenate(rows)], self._launcher), starts
        jobs: list[Job] = []
        for index, expert in enumerate(experts):
            low, high = starts[index], starts[index + 1]
            jobs.append((expert.gate, source, offsets[index], high - low, gate[low:high]))
            jobs.append((expert.up, source, offsets[index], high - low, up[low:high]))
        self._products.run(jobs)
        gated(self._launcher, gate, up, activation, gate)
        hidden = Rows(gate, self._launcher)
        result = np.empty((total, out.shape[1]), np.float32)
        self._products.run(
            [
                (expert.down, hidden, starts[i], starts[i + 1] - starts[i], result[starts[i] : starts[i + 1]])
                for i, expert in enumerate(experts)
            ]
        )
        out[np.concatenate(slots)] = result

    def _one_row(
        self, experts: Sequence[Expert], x: F32, slots: Sequence[I32], activation: Activation, out: F32
    ) -> None:
        gate, down = experts[0].gate, experts[0].down
        count, ff, d = len(experts), gate.rows, down.rows
        if x.shape[1] != gate.cols or out.shape[1] != d or not out.flags.c_contiguous:
            raise UsageError(f"experts of {gate.cols} x {ff} x {d} do not fit {x.shape} and {out.shape}")
        places = [int(slot[0]) for slot in slots]
        if len(places) != count or min(places) < 0 or max(places) >= len(out):
            raise UsageError(f"{count} experts cannot write to rows {places} of {len(out)}")
        key = (count, gate.type, down.type, gate.cols, ff, d, activation)
        with self._launcher.lock:
            known = self._programs.get(key)
            if known is None:
                known = self._programs[key] = self._laid_out(experts, activation)
            known.row[:] = x
            known.front[:count, _WEIGHTS] = [each.gate.address for each in experts]
            known.front[count:, _WEIGHTS] = [each.up.address for each in experts]
            known.back[:, _WEIGHTS] = [each.down.address for each in experts]
            target = address(out)
            known.back[:, _OUT] = [target + 4 * d * place for place in places]
            self._launcher.run_program(known.program)

    def _laid_out(self, experts: Sequence[Expert], activation: Activation) -> _ExpertProgram:
        """For experts like these. Where the results go is not known yet."""
        gate, down = experts[0].gate, experts[0].down
        count, ff = len(experts), gate.rows
        row = np.zeros((1, gate.cols), np.float32)
        hidden = np.zeros((2 * count, ff), np.float32)  # gates, then ups
        launches: list[Launch] = []
        kept: list[object] = [row, hidden]

        def lay_out_form(x: F32, kind: str) -> Form:
            if kind == "f32":
                return plain(x)
            form, memory, arguments = quantised(x, kind)
            kept.append(memory)
            launches.append(self._launcher.laid_out(QUANTIZE[kind], arguments, len(x), QUANTIZE_GRAIN))
            return form

        first = lay_out_form(row, MATRIX_KERNELS[gate.type].form)
        outs = [address(hidden) + 4 * ff * index for index in range(2 * count)]
        matrices = [each.gate for each in experts] + [each.up for each in experts]
        front = len(launches)
        launches.append(self._products.laid_out(matrices, [first] * len(matrices), outs))
        gates, ups = hidden[:count], hidden[count:]
        arguments = gated_arguments(gates, ups, activation, gates)
        launches.append(self._launcher.laid_out("gated", arguments, count, GATED_GRAIN))
        second = lay_out_form(gates, MATRIX_KERNELS[down.type].form)
        back = len(launches)
        rows = [second.row(index) for index in range(count)]
        launches.append(self._products.laid_out([each.down for each in experts], rows, [0] * count))
        program = Program(launches, kept)
        return _ExpertProgram(program, row, program.products(front, 2 * count), program.products(back, count))


def _alike(experts: Sequence[Expert]) -> bool:
    """Whether all are packed, of the same formats and sizes."""
    first = experts[0]
    return (
        first.gate.type == first.up.type
        and first.gate.type in MATRIX_KERNELS
        and first.down.type in MATRIX_KERNELS
        and all(expert.kind == first.kind for expert in experts)
    )
