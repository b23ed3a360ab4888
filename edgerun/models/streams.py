"""The streams of models that have several (AltUp): made of a token's embedding, and joined before the head."""

from __future__ import annotations

import numpy as np

from edgerun.kernels.interface import F32, Kernels, Matrix
from edgerun.models.chunks import CHUNK, chunks
from edgerun.models.spec import ModelSpec
from edgerun.weights import WeightStore
from edgerun.weights.catalog import STREAMS_CLOSING, STREAMS_OPENING


class JoinBuffers:
    """For T rows of S streams: all (T, S, d), others (T * (S - 1), d), shares (T, S)."""

    def __init__(self, rows: int, streams: int, d_model: int) -> None:
        self.all = np.empty((rows, streams, d_model), np.float32)
        self.others = np.empty((rows * (streams - 1), d_model), np.float32)
        self.shares = np.full((rows, streams), 1 / streams, np.float32)


class Streams:
    """Opens and joins streams by the file's matrices, ((S - 1) * d, d) each."""

    def __init__(self, spec: ModelSpec, store: WeightStore, kernels: Kernels) -> None:
        self._n, self._d = spec.streams, spec.d_model
        self._store, self._kernels = store, kernels

    @property
    def _opening(self) -> Matrix:
        return self._store.outer(STREAMS_OPENING)

    def open(self, x: F32) -> F32:
        """(T, S * d) of embeddings x (T, d), which are the first; the others are as long as it."""
        out = np.empty((len(x), self._n, self._d), np.float32)
        for part in chunks(len(x), CHUNK):
            mine = np.ascontiguousarray(x[part])
            made = np.empty((len(mine), (self._n - 1) * self._d), np.float32)
            self._kernels.matmul(self._opening, self._kernels.activations(mine), made)
            others = made.reshape(len(mine), self._n - 1, self._d)
            self._kernels.match_norms(others, mine)
            out[part, 0], out[part, 1:] = mine, others
        return out.reshape(len(x), self._n * self._d)

    def buffers(self, rows: int) -> JoinBuffers:
        """For `join`, to be kept as long as what is recorded."""
        return JoinBuffers(rows, self._n, self._d)

    def join(self, x: F32, out: F32, b: JoinBuffers) -> None:
        """out (T, d) = the mean of the first stream of x (T, S * d) and what the others are turned into, as long."""
        kernels, rest = self._kernels, (self._n - 1) * self._d
        kernels.copy(x[:, : self._d], b.all[:, 0])
        kernels.copy(x[:, self._d :], b.others.reshape(len(x), rest))
        kernels.matmul_heads(self._store.outer(STREAMS_CLOSING), kernels.activations(b.others), b.all[:, 1:])
        kernels.match_norms(b.all[:, 1:], b.all[:, 0])
        kernels.combine(b.all.reshape(-1, self._d), b.shares, out)
