"""A dense model larger than memory: some layers stay, the others pass through a window of buffers, in order.

While a layer computes the next ones are being read, across the end of a token too: the first streamed layer follows
the last (TPI-LLM's sliding window, Superpipeline). Layers that stay are spread evenly among those that pass, so that
their computing time is reading time as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun.device.forks import call_after_fork
from edgerun.errors import UsageError
from edgerun.events import EventSink, SpanSink, ignore, never
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import F32, I32, Kernels, Matrix
from edgerun.weights.arena import Arena
from edgerun.weights.blocks import block_bytes, layer_blocks
from edgerun.weights.catalog import LAYER_EMBEDDING, make_catalog
from edgerun.weights.flash import PREDICTED, Reading
from edgerun.weights.lasting import LastingWeights
from edgerun.weights.neuron_cache import NeuronCache
from edgerun.weights.packing import open_reader
from edgerun.weights.resident import HasLayers
from edgerun.weights.store import LayerLease, LayerWeights, LeasedMatrices, NeuronLease
from edgerun.weights.tensor_reader import DenseLoader


@dataclass
class BufferStats:
    """Counts since the start: layers that were ready when asked for, those waited for, and the waiting."""

    ready: int = 0
    waited: int = 0
    stall_s: float = 0.0
    restarts: int = 0  # asked for out of order, as after a cancelled prompt


@dataclass(frozen=True, eq=False)
class _Load:
    """A layer in a buffer, or on its way there."""

    layer: int
    matrices: dict[str, Matrix]
    reading: Reading


class StreamedLayerStore(LastingWeights):
    """`WeightStore` over a GGUF file of which only `pinned` layers and `buffers` (at least two) more fit.

    wave_tokens: of a prompt that pass a layer together. neuron_slots: neurons of each layer that are kept where
    feed-forwards are sparse; `scores`: an earlier run's, to begin with those that were hot then.
    Raises ReadError when the file cannot be read.
    """

    mode: Literal["layers"] = "layers"
    fixed = False
    lookahead = 0

    def __init__(
        self,
        gguf: GgufFile,
        spec: HasLayers,
        kernels: Kernels,
        *,
        pinned: Sequence[int],
        wave_tokens: int,
        buffers: int = 2,
        reader_threads: int = 3,
        direct: bool = True,
        neuron_slots: int = 0,
        scores: F32 | None = None,
        events: EventSink = ignore,
    ) -> None:
        catalog = make_catalog(spec.tensors, spec.n_layers)
        if catalog.n_experts:
            raise UsageError("a mixture of experts is streamed by its experts, not by its layers")
        if buffers < 2:
            raise UsageError(f"streaming layers needs two buffers, got {buffers}")
        self.wave_tokens = wave_tokens
        self.stats = BufferStats()
        self._catalog = catalog
        kernels.prepare(catalog.types())
        if catalog.n_neurons:
            if neuron_slots < 1:
                raise UsageError("a sparse feed-forward needs slots for its neurons")
            kernels.prepare_neurons(catalog.neuron_types())
        self._order = [layer for layer in range(spec.n_layers) if layer not in set(pinned)]
        with contextlib.ExitStack() as stack:
            self._reader = open_reader(gguf, catalog, kernels, threads=reader_threads, direct=direct, events=events)
            self.flash, self.packed = self._reader.flash, self._reader.packed
            stack.callback(self.flash.close)
            loader = DenseLoader(self._reader, catalog)
            self._outside, self._head = loader.outside(), loader.head()
            self._outer = loader.outer()
            self._layers = [
                loader.layer(layer, matrices=number in pinned) for number, layer in enumerate(catalog.layers)
            ]
            loader.run(events)
            self._layouts = layer_blocks(catalog, kernels)
            self._neurons = NeuronCache(self._layouts, self._reader, neuron_slots, scores) if neuron_slots else None
            size = block_bytes([self._layouts[layer] for layer in self._order])
            self._buffers = [Arena(size, large_pages=True).bytes for _ in range(buffers)] if self._order else []
            self._matrices: dict[tuple[int, int], dict[str, Matrix]] = {}  # of (buffer, layer)
            self._loads: list[_Load | None] = [None] * len(self._buffers)  # of each buffer
            self._lent: LeasedMatrices | None = None
            self._lent_layer, self._lenders = -1, 0
            self._next = 0  # which of `_order` is read next
            self._torn = True  # whether somebody was interrupted while the window moved
            for buffer in range(len(self._buffers)):
                self._read_next(buffer)
            self._torn = False
            self._close = stack.pop_all()
        call_after_fork(self)

    def embedding(self, ids: NDArray[np.int32]) -> F32:
        return self._reader.rows(self._catalog.embedding, ids)

    def layer_embedding(self, ids: NDArray[np.int32]) -> F32:
        return self._reader.rows(self._catalog.further[LAYER_EMBEDDING], ids)

    def begin(self) -> None:
        if self._lent is not None:
            self._lent.end()
        self._lent, self._lenders = None, 0
        if self._neurons is not None:
            self._neurons.begin()

    def after_fork(self) -> None:
        """See `device.forks`."""
        self._torn = True
        self.flash.after_fork()

    def layer(self, layer: int, cancelled: Callable[[], bool] = never) -> LayerLease:
        if layer not in self._order:
            return super().layer(layer)
        return self._lease(layer, cancelled)

    @contextmanager
    def _lease(self, layer: int, cancelled: Callable[[], bool]) -> Iterator[LayerWeights]:
        if self._lent is None:
            self._lent = LeasedMatrices(layer, self._arrived(layer, cancelled).matrices)
            self._lent_layer, self._lenders = layer, 0
        elif self._lent_layer != layer:
            raise UsageError(f"layer {self._lent_layer} is in use: give it back before layer {layer} takes its place")
        lent = self._lent
        self._lenders += 1
        try:
            yield LayerWeights(lent, self._layers[layer].vectors)
        finally:
            if self._lent is lent:
                self._lenders -= 1
                if not self._lenders:
                    self._lent = None
                    lent.end()
                    self._leave(layer)

    def _arrived(self, layer: int, cancelled: Callable[[], bool]) -> _Load:
        """The layer's buffer, when it is filled."""
        load = None if self._torn else self._find(layer)
        if load is None:
            load = self._restart(layer, cancelled)
        if load.reading.is_done:
            self.stats.ready += 1
        began = time.perf_counter()
        if not load.reading.is_done:
            load.reading.hurry()
            self.stats.waited += 1
        try:
            load.reading.wait(cancelled)
        finally:
            if load.reading.error is not None:
                self._torn = True  # all is read again when it is asked for again
            self.stats.stall_s += time.perf_counter() - began
        return load

    @property
    def scores(self) -> F32 | None:
        """How often each neuron fired lately, (layers, neurons) f32; None where feed-forwards are matrices."""
        return self._neurons.scores if self._neurons is not None else None

    def neurons(self, layer: int, ids: I32, cancelled: Callable[[], bool] = never) -> NeuronLease:
        assert self._neurons is not None  # the decoder asks where the file has them
        return self._neurons.lease(layer, ids, cancelled)

    def watch(self, watcher: SpanSink | None) -> None:
        self.flash.watch(watcher)

    def statistics(self) -> dict[str, float]:
        """Counts since the start: see `BufferStats` and `ReadStats`."""
        neurons = asdict(self._neurons.stats) if self._neurons is not None else {}
        return {**asdict(self.stats), **neurons, **{f"read_{k}": v for k, v in asdict(self.flash.stats).items()}}

    def close(self) -> None:
        self._close.close()

    def _find(self, layer: int) -> _Load | None:
        return next((load for load in self._loads if load is not None and load.layer == layer), None)

    def _leave(self, layer: int) -> None:
        """The layer is done with: read another into its buffer."""
        if self._torn:
            return
        self._torn = True
        for buffer, load in enumerate(self._loads):
            if load is not None and load.layer == layer:
                self._read_next(buffer)
        self._torn = False

    def _read_next(self, buffer: int) -> None:
        layer = self._order[self._next]
        self._next = (self._next + 1) % len(self._order)
        if self._find(layer) is not None:  # fewer streamed layers than buffers: all are here
            return
        load = _Load(layer, self._matrices_in(buffer, layer), Reading(self.flash))
        self._loads[buffer] = load  # before anything is read: `_restart` must know of it
        pieces = self._reader.block_pieces(
            self._layouts[layer],
            layer,
            0,
            self._buffers[buffer],
            tuple(load.matrices.values()),
            load.reading.landed,
        )
        load.reading.begin(pieces, PREDICTED)  # of the running layer, neurons that have fired go first

    def _restart(self, layer: int, cancelled: Callable[[], bool]) -> _Load:
        """Read from this layer on: the window was somewhere else, or somebody was interrupted while it moved."""
        self.stats.restarts += 1
        self._torn = True
        for load in self._loads:
            if load is not None:
                load.reading.give_up(cancelled)  # what a thread has begun must land before the buffer is used again
        self._loads = [None] * len(self._buffers)
        self._next = self._order.index(layer)
        for buffer in range(len(self._buffers)):
            self._read_next(buffer)
        self._torn = False
        load = self._find(layer)
        assert load is not None  # it was the first
        return load

    def _matrices_in(self, buffer: int, layer: int) -> dict[str, Matrix]:
        """The layer's matrices in a buffer."""
        known = self._matrices.get((buffer, layer))
        if known is None:
            known = {}
            names = self._catalog.layers[layer].matrices
            for part, block in zip(names, self._layouts[layer].parts, strict=True):
                memory = self._buffers[buffer][block.offset : block.offset + block.n_bytes]
                known[part] = self._reader.kernels.matrix_in(memory, block.info.type, block.rows, block.cols)
            self._matrices[buffer, layer] = known
        return known


def spread(layers: int, pinned: int) -> list[int]:
    """Which layers stay when `pinned` of `layers` may: those between streamed ones spread evenly."""
    streamed = layers - pinned
    passing = {i * layers // streamed for i in range(streamed)} if streamed else set()
    return [layer for layer in range(layers) if layer not in passing]
