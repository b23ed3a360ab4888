"""All weights in memory, in the kernels' layout: one copy, packed tensor by tensor as the file is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.events import EventSink, Progress, SpanSink, ignore, never
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.formats.gguf.types import GgmlType
from edgerun.formats.quants import dequantize
from edgerun.kernels.interface import F32, I32, Expert, Kernels, Matrix, Neurons, make_expert
from edgerun.kernels.recording import ExpertPlaces
from edgerun.weights.arena import Arena
from edgerun.weights.catalog import LAYER_EMBEDDING, NEURON_PARTS, Catalog, LayerTensors, TensorRows, make_catalog
from edgerun.weights.lasting import LastingWeights
from edgerun.weights.store import ExpertLease, LayerWeights, NeuronBatch, NeuronLease


class HasLayers(Protocol):
    """Of `models.ModelSpec`."""

    @property
    def n_layers(self) -> int: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By their names in the file: all that the model uses, each checked to be of the shape it must have."""
        ...


class ResidentStore(LastingWeights):
    """`WeightStore` over a GGUF file whose weights fit in memory.

    Every tensor is read into one buffer and packed from there, so peak memory is the weights plus one tensor. The file
    must stay open: rows of the embedding are read from it. Raises ReadError when it is cut or changed meanwhile.
    """

    mode: Literal["resident"] = "resident"
    fixed = True
    lookahead = 0
    wave_tokens = 0

    def __init__(self, gguf: GgufFile, spec: HasLayers, kernels: Kernels, *, events: EventSink = ignore) -> None:
        self._gguf = gguf
        self._kernels = kernels
        self._events = events
        catalog = make_catalog(spec.tensors, spec.n_layers)
        self._done_bytes, self._total_bytes = 0, catalog.n_bytes
        self._embedding = catalog.embedding
        self._arena = Arena(_packed_bytes(catalog, kernels), large_pages=True)
        self._used_bytes = 0
        self._buffer: NDArray[np.uint8] | None = np.empty(_largest_read(catalog), np.uint8)
        self._outside = {name: self._floats(info) for name, info in catalog.outside.items()}
        self._layers: list[LayerWeights] = []
        self._experts: list[list[Expert]] = []
        self._strides: list[tuple[int, ...]] = []  # of each layer: bytes from expert to expert of its matrices
        self._neurons = [self._take_neurons(layer) for layer in catalog.layers]
        if any(self._neurons):
            kernels.prepare_neurons(catalog.neuron_types())
        for layer in catalog.layers:
            self._layers.append(self._take(layer))
            self._experts.append(self._take_experts(layer))
            self._strides.append(tuple(_packed_rows(each, kernels) for each in layer.expert_rows))
        self._head = self._pack(catalog.head)
        self._further = catalog.further
        self._outer = {name: self._pack(info) for name, info in catalog.multiplied_outside.items()}
        self._buffer = None

    def embedding(self, ids: NDArray[np.int32]) -> F32:
        rows = self._gguf.gather(self._embedding.name, ids)
        return np.ascontiguousarray(dequantize(rows, self._embedding.type))

    def layer_embedding(self, ids: NDArray[np.int32]) -> F32:
        info = self._further[LAYER_EMBEDDING]
        return np.ascontiguousarray(dequantize(self._gguf.gather(info.name, ids), info.type))

    def experts(
        self,
        layer: int,
        ids: I32,
        uses: I32 | None = None,
        tokens: int = 1,
        cancelled: Callable[[], bool] = never,
    ) -> ExpertLease:
        mine = self._experts[layer]
        return contextlib.nullcontext(iter([[mine[i] for i in ids]]))

    def places(self, layer: int) -> ExpertPlaces | None:
        mine = self._experts[layer]
        if not mine:
            return None
        return ExpertPlaces(np.arange(len(mine)), mine[0], self._strides[layer], np.zeros(1, np.int64))

    def neurons(self, layer: int, ids: I32, cancelled: Callable[[], bool] = never) -> NeuronLease:
        mine = self._neurons[layer]
        assert mine is not None  # the decoder asks where the file has them
        some = Neurons(ids, ids, mine.memory, mine.up_type, mine.down_type, mine.cols)
        return contextlib.nullcontext(iter([NeuronBatch(some, lambda: None, some)]))

    def watch(self, watcher: SpanSink | None) -> None:
        """Nothing is read."""

    def statistics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """The memory goes with the last reference."""

    def _take(self, layer: LayerTensors) -> LayerWeights:
        return LayerWeights(
            {part: self._pack(info) for part, info in layer.matrices.items()},
            {part: self._floats(info) for part, info in layer.vectors.items()},
        )

    def _take_experts(self, layer: LayerTensors) -> list[Expert]:
        packed = []
        for each in layer.expert_rows:
            info, (experts, rows, cols) = each.info, each.info.shape
            packed.append(
                [
                    self._packed(self._read(info, i * rows + each.first, each.rows), info.type, cols)
                    for i in range(experts)
                ]
            )
        for info in layer.experts.values():
            self._finish(info)
        return [make_expert(i, matrices) for i, matrices in enumerate(zip(*packed, strict=True))]

    def _take_neurons(self, layer: LayerTensors) -> Neurons | None:
        if not layer.neurons:
            return None
        up, down = (layer.neurons[part] for part in NEURON_PARTS)
        memory = np.empty((up.shape[0], layer.neuron_bytes), np.uint8)
        memory[:, : up.row_bytes] = self._read(up, 0, up.shape[0])
        self._finish(up)
        memory[:, up.row_bytes :] = self._read(down, 0, down.shape[0])
        self._finish(down)
        every = np.arange(up.shape[0], dtype=np.int32)
        return Neurons(every, every, memory, up.type, down.type, up.shape[1])

    def _floats(self, info: TensorInfo) -> F32:
        floats = np.ascontiguousarray(dequantize(self._gguf.raw(info.name), info.type).reshape(-1))
        self._finish(info)
        return floats

    def _pack(self, info: TensorInfo) -> Matrix:
        matrix = self._packed(self._read(info, 0, info.shape[0]), info.type, info.shape[1])
        self._finish(info)
        return matrix

    def _packed(self, raw: NDArray[np.uint8], type: GgmlType, cols: int) -> Matrix:
        n_bytes = self._kernels.packed_bytes(type, len(raw), cols)
        start = self._used_bytes
        self._used_bytes = start + _whole_lines(n_bytes)
        return self._kernels.pack(raw, type, cols, self._arena.bytes[start : start + n_bytes])

    def _read(self, info: TensorInfo, first: int, rows: int) -> NDArray[np.uint8]:
        """Rows of a tensor seen as (all leading dimensions, cols): (rows, row_bytes) u8, valid until the next call."""
        return self._gguf.rows(info.name, first, first + rows, self._buffer)

    def _finish(self, info: TensorInfo) -> None:
        self._done_bytes += info.n_bytes
        self._events(Progress("load weights", self._done_bytes, self._total_bytes, "bytes"))


def _packed_bytes(catalog: Catalog, kernels: Kernels) -> int:
    """Memory of all matrices, as `ResidentStore` lays them out."""
    infos = catalog.outer_matrices
    for layer in catalog.layers:
        infos += layer.matrices.values()
    total = sum(_whole_lines(kernels.packed_bytes(info.type, *info.shape)) for info in infos)
    for layer in catalog.layers:
        for each in layer.expert_rows:
            total += each.info.shape[0] * _packed_rows(each, kernels)
    return total


def _packed_rows(of: TensorRows, kernels: Kernels) -> int:
    """Bytes from one expert's matrix to the next one's."""
    return _whole_lines(kernels.packed_bytes(of.info.type, of.rows, of.info.shape[-1]))


def _whole_lines(n_bytes: int) -> int:
    """Rounded up to whole cache lines."""
    return -(-n_bytes // 64) * 64


def _largest_read(catalog: Catalog) -> int:
    """Bytes of the largest matrix that is packed, of one expert where there are several in a tensor."""
    matrices = catalog.outer_matrices
    for layer in catalog.layers:
        matrices += [*layer.matrices.values(), *layer.neurons.values()]
    experts = [info.n_bytes // info.shape[0] for layer in catalog.layers for info in layer.experts.values()]
    return max([*(info.n_bytes for info in matrices), *experts])
