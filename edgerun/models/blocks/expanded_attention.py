"""Latent attention as files until April 2025 have it: one matrix `attn_kv_b` makes each head's own keys and values of a
position's latent vector, and these are what is kept ("not absorbed"). It takes the memory of as many heads of keys and
values as there are of queries; `latent_attention.py` is what newer files allow.

    c, r = split(h @ kv_a, [rank, rotated]);  k_n, v = split(norm(c) @ kv_b_i, [plain, value]) of head i
    key_i = [rotated r | k_n];  query_i = [rotated q_r | q_n];  result_i = softmax(query_i . keys_i) values_i
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgerun.kernels.interface import F32, Kernels
from edgerun.kv import KvLayer
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Tensor
from edgerun.models.blocks.latent_attention import LatentAttention, LowBuffers
from edgerun.models.blocks.products import add_product, scale_and_bias
from edgerun.models.places import Places
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import LatentNumbers

_MATRIX = "attn_kv_b"


@dataclass(frozen=True)
class ExpandedLayout:
    """Buffers: see `ExpandedBuffers`."""

    heads: int
    latent: LatentNumbers
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        heads, of = self.heads, self.latent
        by_heads = (of.key_dim, of.key_dim, of.key_dim, of.plain_dim + of.value_dim, of.value_dim, of.value_dim)
        low = [of.query_rank] if of.query_rank else []
        return (*low, *(heads * each for each in by_heads), of.rank + of.rotated_dim, of.rank)

    def make(self, rows: int, take: Take) -> ExpandedBuffers:
        return ExpandedBuffers(self, rows, take)


class ExpandedBuffers(LowBuffers):
    """For T rows: query, key (T, heads, key_dim) and value, read (T, heads, value_dim) what attention is of and what it
    gives; both (T * heads, plain + value) what the matrix makes of latent (T, rank)."""

    def __init__(self, layout: ExpandedLayout, rows: int, take: Take) -> None:
        super().__init__(layout.heads, layout.latent, rows, take)
        heads, of = layout.heads, layout.latent
        self.query, self.key = (take(heads * of.key_dim).reshape(rows, heads, of.key_dim) for _ in range(2))
        self.made = take(heads * (of.plain_dim + of.value_dim))
        self.both = self.made.reshape(rows * heads, of.plain_dim + of.value_dim)
        self.value = take(heads * of.value_dim).reshape(rows, heads, of.value_dim)
        self.read = take(heads * of.value_dim)
        self.latent = take(of.rank)


@dataclass(frozen=True)
class ExpandedAttention(LatentAttention):
    """x += output(attention(...)), as above."""

    @cached_property
    def keys_and_values(self) -> KvLayer:
        return KvLayer(self.heads, self.latent.key_dim, self.latent.value_dim)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        of = self.latent
        return self.common_tensors | {_MATRIX: Tensor((self.heads * (of.plain_dim + of.value_dim), of.rank))}

    @cached_property
    def own_layout(self) -> ExpandedLayout:
        """Of its buffers."""
        return ExpandedLayout(self.heads, self.latent)

    @property
    def floats(self) -> int:
        return 2 * sum(self.own_layout.widths)

    @property
    def layouts(self) -> tuple[ExpandedLayout, ...]:  # type: ignore[override]
        return (self.own_layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b, kernels, of = s.of(self.own_layout), here.kernels, self.latent
        kernels.rms_norm(x, here.vectors["attn_norm"], self.eps, s.h)
        self.multiply_inputs(here, s.h, b)
        queries, keys = b.query.reshape(b.q_rows.shape), b.key.reshape(b.q_rows.shape)
        kernels.copy(b.q_rows[:, : of.plain_dim], queries[:, of.rotated_dim :])
        kernels.copy(b.q_rows[:, of.plain_dim :], queries[:, : of.rotated_dim])
        kernels.rms_norm(b.kv[:, : of.rank], here.vectors["attn_kv_a_norm"], self.eps, b.latent)
        kernels.matmul(here.weights.matrices[_MATRIX], kernels.activations(b.latent), b.made)
        scale_and_bias(here, _MATRIX, b.made)
        kernels.copy(b.both[:, : of.plain_dim], keys[:, of.rotated_dim :])
        kernels.copy(b.both[:, of.plain_dim :], b.value.reshape(len(b.both), of.value_dim))
        _to_all_heads(kernels, b.kv[:, of.rank :], b.key[:, :, : of.rotated_dim])
        self.rotate(here, places, b.query, b.key)
        spans = places.spans(here.layer)
        kernels.kv_write(spans, b.key, b.value)
        kernels.attention(b.query, spans, b.read.reshape(b.value.shape), scale=self.scale)
        add_product(here, self.output, b.read, x, s)


def _to_all_heads(kernels: Kernels, x: F32, out: F32) -> None:
    """out (T, heads, dim), columns of wider rows: every head gets x (T, dim)."""
    tokens, heads, _ = out.shape
    if tokens < heads:
        for row in range(tokens):
            kernels.copy(np.broadcast_to(x[row], out[row].shape), out[row])
        return
    for head in range(heads):
        kernels.copy(x, out[:, head])
