"""Causal attention of grouped queries over keys and values that the sequence keeps (Vaswani et al. 2017; Ainslie et
al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from edgerun.kernels.far import Far
from edgerun.kernels.interface import F32, GateKind, RopeKind
from edgerun.kv import KvLayer
from edgerun.models.blocks.absent import AbsentMixer
from edgerun.models.blocks.attention_buffers import AttentionBuffers, AttentionLayout
from edgerun.models.blocks.base import Here, ones
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.norms import product_input
from edgerun.models.blocks.products import add_product, multiply
from edgerun.models.blocks.sums import norm_over_ranks
from edgerun.models.places import Places
from edgerun.models.scratch import Scratch
from edgerun.models.spec import LayerNumbers, ModelSpec, Rotation


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorms of queries, keys and values. kind: each head by itself, or all together. after: of what is rotated
    already. plain: without weights. v: of every head's values, without weights."""

    kind: Literal["none", "head", "full"]
    after: bool = False
    plain: bool = False
    v: bool = False

    def tensors(self, head_dim: int, q: int, k: int) -> dict[str, Tensor]:
        """Their weights, of heads of head_dim in queries of q and keys of k columns."""
        if self.kind == "none" or self.plain:
            return {}
        q, k = (head_dim, k and head_dim) if self.kind == "head" else (q, k)
        return {"attn_q_norm": Tensor((q,))} | ({"attn_k_norm": Tensor((k,))} if k else {})


@dataclass(frozen=True)
class Attention:
    """x += output(attention(qkv(norm(x)))), with what families put in between.

    keys_and_values: what it reads of a position. source: of which layer, where it keeps nothing itself. scale: of
    scores; softcap: of scores, 0 for none. sinks: a score of each head that takes its share of the weights. gate: what
    its result is multiplied by before the output. whole_cols: of q and k of all ranks together.
    """

    heads: int
    keys_and_values: KvLayer
    source: int | None
    rotation: Rotation | None
    q_rotation: Rotation | None
    far_rotation: Rotation | None
    rope: RopeKind
    norms: HeadNorms
    sinks: bool
    gate: GateKind | None
    scale: float
    softcap: float
    eps: float
    qkv: Product
    output: Product
    whole_cols: tuple[int, int]

    @property
    def kv(self) -> KvLayer | None:
        """What it keeps of a position."""
        return self.keys_and_values if self.source is None else None

    @property
    def has_more(self) -> bool:
        """Whether there is more to it than q, k and v of its own: something that divides it among devices, or computes
        its products elsewhere, would have to know that."""
        return self.gate is not None or {part.out for part in self.qkv.parts} != {"q", "k", "v"}

    def reads(self, layer: int) -> int:
        """The layer whose keys and values it reads, if it is layer `layer`."""
        return layer if self.source is None else self.source

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        dim, rows = self.keys_and_values.head_dim, {part.out: part.rows for part in self.qkv.parts}
        found = product_tensors(self.qkv, self.output)
        found |= self.norms.tensors(dim, self.heads * dim, rows.get("k", 0))
        return found | ({"attn_sinks": Tensor((self.heads,))} if self.sinks else {})

    @property
    def state(self) -> None:
        return None

    @property
    def products(self) -> tuple[Product, ...]:
        return self.qkv, self.output

    @property
    def sums(self) -> tuple[Reduction, ...]:
        count = 0 if self.output.units is None else self.output.units.count
        squares = (Reduction(2, count),) if self.norms.kind == "full" else ()
        return squares + self.output.sums

    @property
    def floats(self) -> int:
        return 2 * self.qkv.rows + 2 * self.output.cols + self.output.unit_floats

    @cached_property
    def layout(self) -> AttentionLayout:
        """Of its buffers."""
        return AttentionLayout(self.qkv, self.heads, self.keys_and_values)

    @property
    def layouts(self) -> tuple[AttentionLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b = s.of(self.layout)
        h = product_input(here.kernels, here.vectors, self.qkv, x, s.h)
        multiply(here, self.qkv, h, b.qkv)
        self.attend(here, places, b)
        add_product(here, self.output, b.o, x, s)

    def attend(self, here: Here, places: Places, b: AttentionBuffers) -> None:
        """b.o = attention of the queries b.q over what the sequence keeps and over b.k and b.v, which are added to it.
        Of the layer's weights only vectors are needed."""
        kernels, kv = here.kernels, self.keys_and_values
        if self.source is None and self.norms.v:  # of what the keys are before they are normed, where v is k
            kernels.rms_norm(b.v_given, ones(kv.head_dim_v), self.eps, b.v_rows)
        if not self.norms.after:
            self._norm(here, b)
        far = self._far(here, places, b)
        self._rotate(here, places, b)
        if self.norms.after:
            self._norm(here, b)
        spans = places.spans(self.reads(here.layer))
        if self.source is None:
            kernels.kv_write(spans, b.k_heads, b.v_heads)
        kernels.attention(
            b.q_heads,
            spans,
            b.o_heads,
            scale=self.scale,
            softcap=self.softcap,
            window=kv.window,
            chunked=kv.chunked,
            sinks=here.vectors["attn_sinks"] if self.sinks else None,
            far=far,
        )
        if self.gate is not None:
            kernels.head_gate(b.o_rows, b.gate_rows, self.gate)

    def _far(self, here: Here, places: Places, b: AttentionBuffers) -> Far | None:
        """Queries for the first positions, where those are seen whatever the window; b.q is not rotated yet."""
        kept_first = self.keys_and_values.kept_first
        if b.far is None or not kept_first:
            return None
        here.kernels.copy(b.q_rows, b.far_rows)
        if self.far_rotation is not None:
            cos, sin = places.rotation(here.tools.ropes[self.far_rotation])
            here.kernels.rope(b.far, cos, sin, self.rope)
        if self.norms.after and self.norms.kind == "head":
            weight = ones(b.far.shape[2]) if self.norms.plain else here.vectors["attn_q_norm"]
            here.kernels.rms_norm(b.far_rows, weight, self.eps, b.far_rows)
        return Far(kept_first, b.far)

    def _norm(self, here: Here, b: AttentionBuffers) -> None:
        """Queries, and keys where there are some."""
        if self.norms.kind == "full":
            q_cols, k_cols = self.whole_cols
            norms = [(b.q, here.vectors["attn_q_norm"], q_cols), (b.k, here.vectors["attn_k_norm"], k_cols)]
            norm_over_ranks(here, norms, self.eps, self.output.units)
        elif self.norms.kind == "head":
            dim, vectors, plain = self.keys_and_values.head_dim, here.vectors, self.norms.plain
            here.kernels.rms_norm(b.q_given, ones(dim) if plain else vectors["attn_q_norm"], self.eps, b.q_rows)
            if self.source is None:
                here.kernels.rms_norm(b.k_rows, ones(dim) if plain else vectors["attn_k_norm"], self.eps, b.k_rows)

    def _rotate(self, here: Here, places: Places, b: AttentionBuffers) -> None:
        ropes = here.tools.ropes
        if self.rotation is not None and self.rotation == self.q_rotation:
            rotated = [(each, self.rotation) for each in b.rotated]
        else:
            rotated = [
                (each, rotation)
                for each, rotation in ((b.q_heads, self.q_rotation), (b.k_heads, self.rotation))
                if rotation is not None and each.size
            ]
        for heads, rotation in rotated:
            cos, sin = places.rotation(ropes[rotation])
            here.kernels.rope(heads, cos, sin, self.rope)


def attention_of(spec: ModelSpec, layer: int) -> Attention | AbsentMixer:
    """A layer's attention, as its family and numbers say."""
    family, numbers, whole, d = spec.family, spec.layers[layer], spec.whole[layer], spec.d_model
    units = spec.units(layer)
    output = Product(
        "o",
        numbers.n_heads * numbers.head_dim_v,
        (Part("t", "attn_output", 0, d),),
        "attn_sub_norm" if family.sub_norms else "",
        "post_attention_norm" if family.post_norms else "",
        spec.norm_eps,
        whole.n_heads * whole.head_dim_v,
        post_eps=family.post_norm_eps,
        factor=spec.residual_scale,
        units=None if units is None else units.mixer,
    )
    if not numbers.n_heads:
        squares = (2,) * (family.qk_norm == "full") + (1,) * family.sub_norms
        return AbsentMixer(output, squares, numbers.kv)
    plain = family.qk_norm_plain
    norms = HeadNorms(family.qk_norm, family.qk_norm_after, plain, family.v_norm)
    if (plain and numbers.rotation is None) or not numbers.qk_normed:  # Llama 4 norms only what it rotates
        norms = HeadNorms("none")
    gates: dict[str, GateKind | None] = {"none": None, "softplus": "softplus"}
    return Attention(
        heads=numbers.n_heads,
        keys_and_values=numbers.kv,
        source=numbers.kv_source,
        rotation=numbers.rotation,
        q_rotation=numbers.q_rotation,
        far_rotation=numbers.far_rotation if numbers.kept_first else None,
        rope=family.rope,
        norms=norms,
        sinks=family.sinks,
        gate=gates.get(family.output_gate, "sigmoid"),
        scale=spec.attention_scale(layer),
        softcap=spec.attention_softcap,
        eps=spec.norm_eps,
        qkv=Product(
            "qkv",
            d,
            _parts(spec, numbers),
            "attn_norm" if family.pre_norms else "",
            eps=spec.norm_eps,
            norm_kind=family.norm,
        ),
        output=output,
        whole_cols=(whole.n_heads * whole.head_dim_k, whole.n_kv_heads * whole.head_dim_k),
    )


def _parts(spec: ModelSpec, numbers: LayerNumbers) -> tuple[Part, ...]:
    """q, k, v and gate, as far as the layer has them, in the tensors of the file."""
    gate, heads = spec.family.output_gate, numbers.n_heads
    q, k, v = (
        heads * numbers.head_dim_k,
        numbers.n_kv_heads * numbers.head_dim_k,
        numbers.n_kv_heads * numbers.head_dim_v,
    )
    q_and_gate = q + heads * numbers.head_dim_v if gate == "in_q" else q
    if numbers.packed_qkv:
        rows = {"q": q_and_gate, "k": k, "v": v}
        firsts = {"q": 0, "k": q_and_gate, "v": q_and_gate + k}
        parts = [Part(out, "attn_qkv", firsts[out], rows[out]) for out in rows]
    elif numbers.kv_source is not None:
        parts = [Part("q", "attn_q", 0, q_and_gate)]
    else:
        parts = [Part("q", "attn_q", 0, q_and_gate), Part("k", "attn_k", 0, k)]
        if not numbers.v_from_k:
            parts.append(Part("v", "attn_v", 0, v))
    if gate in ("sigmoid", "softplus"):
        parts.append(Part("gate", "attn_gate", 0, heads if numbers.gate_per_head else heads * numbers.head_dim_v))
    return tuple(parts)
