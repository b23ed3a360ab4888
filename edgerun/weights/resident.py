"""All weights in memory, in the kernels' layout: one copy, packed tensor by tensor as the file is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.formats.quants import dequantize
from edgerun.kernels.interface import F32, I32, Expert, Kernels, Matrix
from edgerun.weights.store import LayerWeights

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


class HasLayers(Protocol):
    """Of `models.ModelSpec`."""

    @property
    def n_layers(self) -> int: ...


class ResidentStore:
    """`WeightStore` over a GGUF file whose weights fit in memory.

    Every tensor is packed once and its pages of the mapped file given back, so peak memory is the weights plus
    one tensor. The file must stay open: rows of the embedding are read from it.
    """

    fixed = True

    def __init__(self, gguf: GgufFile, spec: HasLayers, kernels: Kernels, *, events: EventSink = ignore) -> None:
        self._gguf = gguf
        self._kernels = kernels
        self._embedding = gguf.tensors["token_embd.weight"]
        self._outside: dict[str, F32] = {}
        self._layers = [LayerWeights() for _ in range(spec.n_layers)]
        self._experts: list[list[Expert]] = [[] for _ in range(spec.n_layers)]
        self._head: Matrix | None = None
        done = 0
        for name, info in gguf.tensors.items():
            self._take(name, info)
            done += info.n_bytes
            events(Progress("load weights", done, gguf.n_bytes, "bytes"))
        for layer, weights in enumerate(self._layers):
            self._collect_experts(layer, weights)
        if self._head is None:
            self._head = self._pack(self._embedding)

    def embedding(self, ids: NDArray[np.int32]) -> F32:
        rows = self._gguf.raw("token_embd.weight")[ids]
        return np.ascontiguousarray(dequantize(rows, self._embedding.type))

    def head(self) -> Matrix:
        assert self._head is not None
        return self._head

    def vector(self, name: str) -> F32 | None:
        return self._outside.get(name)

    def dense(self, layer: int) -> LayerWeights:
        return self._layers[layer]

    def experts(self, layer: int, ids: I32) -> Iterator[list[Expert]]:
        mine = self._experts[layer]
        yield [mine[i] for i in ids]

    def expect(self, layer: int, ids: I32, confidence: float) -> None:
        """Everything is here already."""

    def _take(self, name: str, info: TensorInfo) -> None:
        """Bring one tensor into memory where it belongs."""
        if name == "token_embd.weight":
            return
        match = _LAYER.fullmatch(name)
        if match is None:
            if name == "output.weight":
                self._head = self._pack(info)
            elif len(info.shape) == 1:
                self._outside[name.removesuffix(".weight")] = self._floats(info)
            return
        layer, part = int(match[1]), match[2].removesuffix(".weight")
        if layer >= len(self._layers):
            raise FormatError(f"{name}: the model has only {len(self._layers)} layers")
        weights = self._layers[layer]
        if len(info.shape) == 1:
            weights.vectors[part] = self._floats(info)
        elif len(info.shape) == 2:
            weights.matrices[part] = self._pack(info)
        elif len(info.shape) == 3 and part in _EXPERTS:
            self._pack_experts(layer, part, info)
        else:
            raise FormatError(f"{name}: unexpected shape {info.shape}")

    def _floats(self, info: TensorInfo) -> F32:
        return np.ascontiguousarray(dequantize(self._gguf.raw(info.name), info.type).reshape(-1))

    def _pack(self, info: TensorInfo) -> Matrix:
        matrix = self._kernels.pack(self._gguf.raw(info.name), info.type, info.shape[1])
        self._gguf.release(info.name)
        return matrix

    def _pack_experts(self, layer: int, part: str, info: TensorInfo) -> None:
        raw = self._gguf.raw(info.name)
        for expert in range(info.shape[0]):
            matrix = self._kernels.pack(raw[expert], info.type, info.shape[2])
            self._layers[layer].matrices[f"{part}.{expert}"] = matrix
        self._gguf.release(info.name)

    def _collect_experts(self, layer: int, weights: LayerWeights) -> None:
        count = 0
        while f"{_EXPERTS[0]}.{count}" in weights.matrices:
            count += 1
        for expert in range(count):
            try:
                matrices = [weights.matrices.pop(f"{part}.{expert}") for part in _EXPERTS]
            except KeyError as error:
                raise FormatError(f"blk.{layer}: the tensor of {error} is missing or has fewer experts") from None
            self._experts[layer].append(Expert(expert, *matrices))
