"""Sparse feed-forwards: products with the rows of neurons that fired."""

from __future__ import annotations

from edgerun.errors import UsageError
from edgerun.kernels.abi import NeuronsDown, NeuronsUp
from edgerun.kernels.interface import F32, Activation, Neurons
from edgerun.kernels.kernel_names import neurons_form, neurons_kernel
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layout import NEURON_SLICE
from edgerun.kernels.memory import address
from edgerun.kernels.rows import Rows


def neurons_up(launcher: Launcher, gate: F32, x: Rows, neurons: Neurons, activation: Activation, h: F32) -> None:
    """See `interface.Kernels.neurons_up`."""
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
    rows = x.form(neurons_form(neurons.up_type))
    arguments = NeuronsUp(
        gate=address(gate),
        h=address(h),
        ff=ff,
        tokens=tokens,
        ids=address(neurons.ids),
        slots_at=address(neurons.slots),
        memory=address(neurons.memory),
        memory_stride=neurons.memory.shape[1],
        blocks=neurons.cols // 32,
        x=rows.quants,
        x_stride=rows.quants_stride,
        scales=rows.scales,
        scales_stride=rows.scales_stride,
        squared=int(activation == "relu2"),
    )
    launcher.launch(neurons_kernel("up", neurons.up_type), arguments, n, max(1, min(64, n // 8)))


def neurons_down(launcher: Launcher, h: F32, neurons: Neurons, out: F32) -> None:
    """See `interface.Kernels.neurons_down`."""
    (tokens, ff), n = h.shape, len(neurons.ids)
    if not n:
        return
    if out.shape != (tokens, neurons.cols) or neurons.ids.max() >= ff:
        raise UsageError(f"neurons of {neurons.cols} columns, {ff} in all, into {out.shape}")
    arguments = NeuronsDown(
        h=address(h),
        ff=ff,
        tokens=tokens,
        ids=address(neurons.ids),
        slots_at=address(neurons.slots),
        memory=address(neurons.memory) + neurons.up_type.row_bytes(neurons.cols),
        memory_stride=neurons.memory.shape[1],
        neurons=n,
        out=address(out),
        cols=neurons.cols,
    )
    items = -(-neurons.cols // NEURON_SLICE)
    launcher.launch(neurons_kernel("down", neurons.down_type), arguments, items, max(1, items // 16))
