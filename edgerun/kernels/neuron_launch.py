"""Sparse feed-forwards: products with the rows of neurons that fired.

Rows of five types are used as they lie in the file (`neuron_kernels`). Rows of any other are gathered and packed, some
neurons at a time, and then an up row is multiplied as a matrix's row is, and a down row is made floats and added as
such. What a neuron gives, and the order of sums, is the same however neurons are divided.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels.abi import Dequantize, NeuronsDown, NeuronsGate, NeuronsUp
from edgerun.kernels.interface import F32, I32, U8, Activation, Matrix, Neurons
from edgerun.kernels.kernel_names import MATRIX_KERNELS, dequantize_kernel, neurons_kernel
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.layout import NEURON_SLICE, ROW_TYPES, neurons_at_once
from edgerun.kernels.memory import address
from edgerun.kernels.packer import Packer
from edgerun.kernels.product_launch import ProductLaunch
from edgerun.kernels.rows import Rows

_GATES_AT_ONCE = 4096  # that a thread does at least


class NeuronLaunch:
    """`interface.Kernels.neurons_up` and `neurons_down`, with scratch memory for rows that are packed."""

    def __init__(self, launcher: Launcher, packer: Packer, products: ProductLaunch) -> None:
        self._launcher = launcher
        self._packer = packer
        self._products = products
        self._packed: U8 = np.empty(0, np.uint8)
        self._floats: F32 = np.empty(0, np.float32)

    def up(self, gate: F32, x: Rows, neurons: Neurons, activation: Activation, h: F32) -> None:
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
        squared = int(activation == "relu2")
        if neurons.up_type not in ROW_TYPES:
            with self._launcher.lock:
                self._up_packed(gate, x, neurons, squared, h)
            return
        rows = x.form(MATRIX_KERNELS[neurons.up_type].form)
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
            squared=squared,
        )
        self._launcher.launch(neurons_kernel("up", neurons.up_type), arguments, n, max(1, min(64, n // 8)))

    def down(self, h: F32, neurons: Neurons, out: F32) -> None:
        """See `interface.Kernels.neurons_down`."""
        (tokens, ff), n = h.shape, len(neurons.ids)
        if not n:
            return
        if out.shape != (tokens, neurons.cols) or neurons.ids.max() >= ff:
            raise UsageError(f"neurons of {neurons.cols} columns, {ff} in all, into {out.shape}")
        up_bytes = neurons.up_type.row_bytes(neurons.cols)
        if neurons.down_type in ROW_TYPES:
            memory, stride = address(neurons.memory) + up_bytes, neurons.memory.shape[1]
            self._add(neurons.down_type, memory, stride, h, neurons.ids, neurons.slots, out)
            return
        with self._launcher.lock:
            for ids, slots in self._batches(neurons, 1):
                packed = self._gathered(neurons, up_bytes, slots, neurons.down_type)
                rows = self._unpacked(packed)
                numbers = np.arange(len(ids), dtype=np.int32)
                self._add(GgmlType.F32, address(rows), 4 * neurons.cols, h, ids, numbers, out)

    def _up_packed(self, gate: F32, x: Rows, neurons: Neurons, squared: int, h: F32) -> None:
        tokens, ff = gate.shape
        for ids, slots in self._batches(neurons, tokens):
            packed = self._gathered(neurons, 0, slots, neurons.up_type)
            values = self._room(tokens * len(ids)).reshape(tokens, len(ids))
            self._products.run([(packed, x, 0, tokens, values)])
            arguments = NeuronsGate(address(gate), address(h), ff, address(ids), len(ids), address(values), squared)
            self._launcher.launch("neurons_gate", arguments, tokens, max(1, _GATES_AT_ONCE // len(ids)))

    def _add(self, type: GgmlType, memory: int, stride: int, h: F32, ids: I32, slots: I32, out: F32) -> None:
        """out += h times rows down of one of ROW_TYPES, which lie at an address."""
        (tokens, ff), cols = h.shape, out.shape[1]
        arguments = NeuronsDown(
            h=address(h),
            ff=ff,
            tokens=tokens,
            ids=address(ids),
            slots_at=address(slots),
            memory=memory,
            memory_stride=stride,
            neurons=len(ids),
            out=address(out),
            cols=cols,
        )
        items = -(-cols // NEURON_SLICE)
        self._launcher.launch(neurons_kernel("down", type), arguments, items, max(1, items // 16))

    def _batches(self, neurons: Neurons, tokens: int) -> Iterator[tuple[I32, I32]]:
        """Ids and slots of neurons that are packed together."""
        step = neurons_at_once(neurons.cols, tokens, self._packer.lanes)
        for low in range(0, len(neurons.ids), step):
            yield neurons.ids[low : low + step], neurons.slots[low : low + step]

    def _gathered(self, neurons: Neurons, first_byte: int, slots: I32, type: GgmlType) -> Matrix:
        """Rows of neurons, packed: there until the next are."""
        n_bytes = self._packer.packed_bytes(type, len(slots), neurons.cols)
        if self._packed.size < n_bytes:
            self._packed = np.empty(n_bytes, np.uint8)
        return self._packer.pack_chosen(neurons.memory, first_byte, slots, type, neurons.cols, self._packed[:n_bytes])

    def _unpacked(self, packed: Matrix) -> F32:
        """A packed matrix as (rows, cols) f32, the rows that fill up its last group too: there until the next is."""
        groups = -(-packed.rows // self._packer.lanes)
        rows = self._room(groups * self._packer.lanes * packed.cols).reshape(-1, packed.cols)
        arguments = Dequantize(packed.address, address(rows), packed.cols // packed.type.block_size)
        self._launcher.launch(dequantize_kernel(packed.type), arguments, groups, 1)
        return rows

    def _room(self, count: int) -> F32:
        if self._floats.size < count:
            self._floats = np.empty(count, np.float32)
        return self._floats[:count]
