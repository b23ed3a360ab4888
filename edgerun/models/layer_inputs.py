"""What every layer of some models is fed beside the residual stream: a part of its own of each token's embedding
(Gemma 3n, Google 2025)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.interface import F32, Kernels
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.spec import ModelSpec
from edgerun.weights import WeightStore
from edgerun.weights.catalog import LAYER_PROJECTION


class LayerInputs:
    """(layers, T, width) f32 of tokens: what their own rows of the table give, and what the stream's embedding does,
    normed."""

    def __init__(self, spec: ModelSpec, store: WeightStore, kernels: Kernels) -> None:
        self.shape = spec.n_layers, spec.per_layer_width
        self._spec = spec
        self._store = store
        self._kernels = kernels
        norm = store.vector("per_layer_proj_norm")
        assert norm is not None  # shapes.check_tensors
        self._norm = norm

    def of(self, tokens: NDArray[np.int32], x: F32) -> F32:
        """Of tokens (T,) whose embeddings are the first columns of x (T, d or more)."""
        layers, width = self.shape
        out = np.empty((layers, len(tokens), width), np.float32)
        for part in chunks(len(tokens), CHUNK):
            out[:, part] = self._rows(tokens[part], x[part, : self._spec.d_model]).transpose(1, 0, 2)
        return out

    def _rows(self, tokens: NDArray[np.int32], x: F32) -> F32:
        """(T, layers, width)."""
        layers, width = self.shape
        kernels, matrix = self._kernels, self._store.outer(LAYER_PROJECTION)
        made = np.empty((len(tokens), layers * width), np.float32)
        kernels.matmul(matrix, kernels.activations(np.ascontiguousarray(x)), made)
        made *= np.float32(self._spec.d_model**-0.5)
        rows = made.reshape(-1, width)
        kernels.rms_norm(rows, self._norm, self._spec.norm_eps, rows)
        made += self._store.layer_embedding(tokens) * np.float32(width**0.5)
        made *= np.float32(2**-0.5)
        return made.reshape(len(tokens), layers, width)
