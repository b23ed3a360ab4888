"""What attention computes with: queries, keys, values and its result, by heads and as rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgerun.kv import KvLayer
from edgerun.models.blocks.declared import Product
from edgerun.models.blocks.products import Results, widths_of
from edgerun.models.scratch import Role, Take


@dataclass(frozen=True)
class AttentionLayout:
    """Of `AttentionBuffers`: parts q, k, v and gate of the product `qkv`, as far as a layer has them."""

    qkv: Product
    heads: int
    kv: KvLayer
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        own = [self.heads * self.kv.head_dim_v]
        own += [self.heads * self.kv.head_dim] if self.gate_in_q else []
        own += [self.kv.kv_heads * self.kv.head_dim_v] if self.v_from_k else []
        own += [self.heads * self.kv.head_dim] if self.kv.kept_first else []
        return (*widths_of(self.qkv), *own)

    @property
    def gate_in_q(self) -> bool:
        """Whether the part q holds each head's gate behind its query."""
        return self._rows("q") > self.heads * self.kv.head_dim

    @property
    def v_from_k(self) -> bool:
        """Whether values are what the part k gives."""
        return self._rows("k") > 0 and not self._rows("v")

    def make(self, rows: int, take: Take) -> AttentionBuffers:
        return AttentionBuffers(self, rows, take)

    def _rows(self, out: str) -> int:
        return sum(part.rows for part in self.qkv.parts if part.out == out)


class AttentionBuffers:
    """qkv: the products' results; q, k, v (T, heads * dim); o (T, heads * head_dim_v); the same by heads (T, heads,
    dim) and as rows (T * heads, dim). k and v have no columns where a layer reads another's.

    q_given, v_given: the rows that q_rows and v_rows are made of by a norm, the same where nothing lies between.
    gate_rows: (T * heads, head_dim_v) or (T * heads, 1), which may lie apart. far (T, heads, head_dim), far_rows:
    queries for the first positions, where those are seen whatever the window.
    """

    def __init__(self, layout: AttentionLayout, rows: int, take: Take) -> None:
        heads, kv = layout.heads, layout.kv
        self.qkv = Results(layout.qkv, rows, take)
        parts, none = self.qkv.parts, np.empty((rows, 0), np.float32)
        self.o = take(heads * kv.head_dim_v)
        self.o_heads = self.o.reshape(rows, heads, kv.head_dim_v)
        self.o_rows = self.o_heads.reshape(-1, kv.head_dim_v)
        given = parts["q"].reshape(rows * heads, -1)
        self.q = take(heads * kv.head_dim) if layout.gate_in_q else parts["q"]
        self.k = parts.get("k", none)
        self.v = take(kv.kv_heads * kv.head_dim_v) if layout.v_from_k else parts.get("v", none)
        self.q_heads = self.q.reshape(rows, heads, kv.head_dim)
        self.k_heads, self.v_heads = self.k.reshape(rows, -1, kv.head_dim), self.v.reshape(rows, -1, kv.head_dim_v)
        self.q_rows, self.k_rows = self.q_heads.reshape(-1, kv.head_dim), self.k_heads.reshape(-1, kv.head_dim)
        self.far = take(heads * kv.head_dim).reshape(rows, heads, kv.head_dim) if kv.kept_first else None
        self.far_rows = self.q_rows if self.far is None else self.far.reshape(-1, kv.head_dim)
        self.v_rows = self.v_heads.reshape(-1, kv.head_dim_v)
        self.q_given = given[:, : kv.head_dim]
        self.v_given = self.k_rows if layout.v_from_k else self.v_rows
        self.gate_rows = given[:, kv.head_dim :] if layout.gate_in_q else parts.get("gate", none)
        if "gate" in parts:
            self.gate_rows = parts["gate"].reshape(rows * heads, -1)
        self.rotated = [each for each in (self.q_heads, self.k_heads) if each.size]  # what a rotation goes over
        if self.qkv.whole is not None and self.k.size and not layout.gate_in_q:  # they lie side by side
            both = (heads + kv.kv_heads) * kv.head_dim
            self.rotated = [self.qkv.whole[:, :both].reshape(1, -1, kv.head_dim)]
