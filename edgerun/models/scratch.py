"""The decoder's own buffers."""

from __future__ import annotations

import numpy as np

from edgerun.kernels.interface import F32
from edgerun.models.spec import ModelSpec

MOST_AHEAD = 2  # routers of later layers that are asked beside a layer's own


class Scratch:
    """Buffers for T rows: made once for each T up to CHUNK that is in use, views of one allocation."""

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        self.rows = rows
        d, heads, kv = spec.d_model, spec.n_heads, spec.n_kv_heads
        q, k, v = heads * spec.head_dim_k, kv * spec.head_dim_k, kv * spec.head_dim_v

        def floats(cols: int) -> F32:
            return np.empty((rows, cols), np.float32)

        self.x, self.h, self.t = floats(d), floats(d), floats(d)
        self.normed, self.logits = floats(d), np.empty((1, spec.vocab_size), np.float32)
        self.qkv = floats(q + k + v)
        if rows == 1:  # parts of one row are contiguous: nothing to take apart when a product fills them all
            self.q, self.k, self.v = self.qkv[:, :q], self.qkv[:, q : q + k], self.qkv[:, q + k :]
        else:
            self.q, self.k, self.v = floats(q), floats(k), floats(v)
        self.o = floats(heads * spec.head_dim_v)
        self.q_heads = self.q.reshape(rows, heads, spec.head_dim_k)
        self.k_heads = self.k.reshape(rows, kv, spec.head_dim_k)
        self.v_heads = self.v.reshape(rows, kv, spec.head_dim_v)
        self.rotated = [self.q_heads, self.k_heads]  # what the rotary embedding goes over
        if rows == 1:
            self.rotated = [self.qkv[:, : q + k].reshape(1, heads + kv, spec.head_dim_k)]
        self.o_heads = self.o.reshape(rows, heads, spec.head_dim_v)
        self.q_rows, self.k_rows = self.q_heads.reshape(-1, spec.head_dim_k), self.k_heads.reshape(-1, spec.head_dim_k)
        ff = spec.d_ff_shared if spec.n_experts else spec.d_ff
        self.gate_up = floats(2 * ff)
        if rows == 1:
            self.gate, self.up = self.gate_up[:, :ff], self.gate_up[:, ff:]
        else:
            self.gate, self.up = floats(ff), floats(ff)
        if spec.n_experts:
            self.router = floats(spec.n_experts)
            self.ahead = [floats(spec.n_experts) for _ in range(MOST_AHEAD)]
            self.parts = np.empty((spec.n_experts_used if rows == 1 else 0, d), np.float32)
