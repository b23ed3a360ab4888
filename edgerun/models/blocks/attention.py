"""Causal attention of grouped queries over keys and values that the sequence keeps (Vaswani et al. 2017; Ainslie et
al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from edgerun.kernels.interface import F32, RopeKind
from edgerun.kv import KvLayer
from edgerun.models.blocks.absent import AbsentMixer
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Tensor, product_tensors
from edgerun.models.blocks.norms import product_input
from edgerun.models.blocks.products import Results, add_product, multiply, widths_of
from edgerun.models.blocks.sums import norm_over_ranks
from edgerun.models.places import Places
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import ModelSpec, Rotation


@dataclass(frozen=True)
class AttentionLayout:
    """Buffers of attention: see `AttentionBuffers`."""

    qkv: Product
    heads: int
    kv_heads: int
    head_dim_v: int
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        return (*widths_of(self.qkv), self.heads * self.head_dim_v)

    def make(self, rows: int, take: Take) -> AttentionBuffers:
        return AttentionBuffers(self, rows, take)


class AttentionBuffers:
    """qkv: the products' results; q, k, v (T, heads * dim) parts of these; o (T, heads * head_dim_v); the same by heads
    (T, heads, dim) and as rows (T * heads, dim)."""

    def __init__(self, layout: AttentionLayout, rows: int, take: Take) -> None:
        heads, kv = layout.heads, layout.kv_heads
        self.qkv = Results(layout.qkv, rows, take)
        self.q, self.k, self.v = (self.qkv.parts[name] for name in ("q", "k", "v"))
        self.o = take(heads * layout.head_dim_v)
        self.q_heads = self.q.reshape(rows, heads, -1)
        self.k_heads, self.v_heads = (each.reshape(rows, kv, -1) for each in (self.k, self.v))
        self.o_heads = self.o.reshape(rows, heads, -1)
        dim = self.q_heads.shape[2]
        self.q_rows, self.k_rows = self.q_heads.reshape(-1, dim), self.k_heads.reshape(-1, dim)
        self.rotated = [self.q_heads, self.k_heads]  # what the rotary embedding goes over
        if self.qkv.whole is not None:
            self.rotated = [self.qkv.whole[:, : (heads + kv) * dim].reshape(1, heads + kv, dim)]


@dataclass(frozen=True)
class Attention:
    """x += output(attention(qkv(norm(x)))), with what families put in between.

    kv: what is kept of a position. qk_norm: an RMSNorm of q and k, of each head or of all together. scale: of scores;
    softcap: of scores, 0 for none. whole_cols: of q and k of all ranks together.
    """

    heads: int
    kv: KvLayer
    rotation: Rotation | None
    rope: RopeKind
    qk_norm: Literal["none", "head", "full"]
    scale: float
    softcap: float
    eps: float
    qkv: Product
    output: Product
    whole_cols: tuple[int, int]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        found = product_tensors(self.qkv, self.output)
        q, k = (part.rows for part in self.qkv.parts[:2])
        if self.qk_norm == "head":
            found |= {"attn_q_norm": Tensor((self.kv.head_dim,)), "attn_k_norm": Tensor((self.kv.head_dim,))}
        elif self.qk_norm == "full":
            found |= {"attn_q_norm": Tensor((q,)), "attn_k_norm": Tensor((k,))}
        return found

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.output

    @property
    def floats(self) -> int:
        return 2 * self.qkv.rows + self.output.cols

    @cached_property
    def layout(self) -> AttentionLayout:
        """Of its buffers."""
        return AttentionLayout(self.qkv, self.heads, self.kv.kv_heads, self.kv.head_dim_v)

    @property
    def layouts(self) -> tuple[AttentionLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b = s.of(self.layout)
        h = product_input(here.kernels, here.vectors, self.qkv, x, s.h)
        multiply(here, self.qkv, h, b.qkv)
        self.attend(here, places, b)
        add_product(here, self.output, b.o, x, s.t)

    def attend(self, here: Here, places: Places, b: AttentionBuffers) -> None:
        """b.o = attention of the queries b.q over what the sequence keeps and over b.k and b.v, which are added to it.
        Of the layer's weights only vectors are needed."""
        kernels, vectors = here.kernels, here.vectors
        if self.qk_norm == "head":
            kernels.rms_norm(b.q_rows, vectors["attn_q_norm"], self.eps, b.q_rows)
            kernels.rms_norm(b.k_rows, vectors["attn_k_norm"], self.eps, b.k_rows)
        elif self.qk_norm == "full":
            q_cols, k_cols = self.whole_cols
            norms = [(b.q, vectors["attn_q_norm"], q_cols), (b.k, vectors["attn_k_norm"], k_cols)]
            norm_over_ranks(here, norms, self.eps)
        if self.rotation is not None:
            cos, sin = places.rotation(here.tools.ropes[self.rotation])
            for heads in b.rotated:
                kernels.rope(heads, cos, sin, self.rope)
        spans = places.spans(here.layer)
        kernels.kv_write(spans, b.k_heads, b.v_heads)
        kernels.attention(b.q_heads, spans, b.o_heads, scale=self.scale, softcap=self.softcap, window=self.kv.window)


def attention_of(spec: ModelSpec, layer: int) -> Attention | AbsentMixer:
    """A layer's attention, as its family and numbers say."""
    family, numbers, whole, d = spec.family, spec.layers[layer], spec.whole[layer], spec.d_model
    q, k = numbers.n_heads * numbers.head_dim_k, numbers.n_kv_heads * numbers.head_dim_k
    v, o = numbers.n_kv_heads * numbers.head_dim_v, numbers.n_heads * numbers.head_dim_v
    if family.fused_qkv:
        parts = (Part("q", "attn_qkv", 0, q), Part("k", "attn_qkv", q, k), Part("v", "attn_qkv", q + k, v))
    else:
        parts = (Part("q", "attn_q", 0, q), Part("k", "attn_k", 0, k), Part("v", "attn_v", 0, v))
    output = Product(
        "o",
        o,
        (Part("t", "attn_output", 0, d),),
        "attn_sub_norm" if family.sub_norms else "",
        "post_attention_norm" if family.post_norms else "",
        spec.norm_eps,
        whole.n_heads * whole.head_dim_v,
        post_eps=family.post_norm_eps,
        factor=spec.residual_scale,
    )
    if not numbers.n_heads:
        squares = (2,) * (family.qk_norm == "full") + (1,) * family.sub_norms
        return AbsentMixer(output, squares, numbers.kv)
    return Attention(
        heads=numbers.n_heads,
        kv=numbers.kv,
        rotation=numbers.rotation,
        rope=family.rope,
        qk_norm=family.qk_norm,
        scale=spec.attention_scale(layer),
        softcap=spec.attention_softcap,
        eps=spec.norm_eps,
        qkv=Product("qkv", d, parts, "attn_norm" if family.pre_norms else "", eps=spec.norm_eps, norm_kind=family.norm),
        output=output,
        whole_cols=(whole.n_heads * whole.head_dim_k, whole.n_kv_heads * whole.head_dim_k),
    )
