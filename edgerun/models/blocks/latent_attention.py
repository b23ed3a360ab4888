"""Latent attention (DeepSeek-V2, 2024): of a position one vector is kept for all heads, which is both their key and
their value.

    c, r = split(h @ kv_a, [rank, rotated]);  c = norm(c);  key = [rotated r | c];  value = c
    of head i: query = [rotated q_r | k_b_i @ q_n],  q = [q_n | q_r];  result = v_b_i @ (softmax(query . keys) values)

Written so, no head's own keys and values are ever made ("absorbed"): attention is that of all heads over a single one,
and every head has two small matrices of its own, whose products are `Kernels.matmul_heads`. The rotated dimensions come
first here, because that is where `Kernels.rope` turns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from edgerun.kernels.interface import F32, RopeKind
from edgerun.kv import KvLayer
from edgerun.models.blocks.absent import AbsentMixer
from edgerun.models.blocks.base import Here
from edgerun.models.blocks.declared import Part, Product, Reduction, Tensor, product_tensors
from edgerun.models.blocks.products import add_product, scale_and_bias
from edgerun.models.places import Places
from edgerun.models.scratch import Role, Scratch, Take
from edgerun.models.spec import LatentNumbers, ModelSpec, Rotation


@dataclass(frozen=True)
class LatentLayout:
    """Buffers of latent attention: see `LatentBuffers`."""

    heads: int
    latent: LatentNumbers
    role: Role = "mixer"

    @property
    def widths(self) -> tuple[int, ...]:
        heads, of = self.heads, self.latent
        key = of.rank + of.rotated_dim
        by_heads = (of.key_dim, of.plain_dim, key, of.rank, of.value_dim)
        return (*([of.query_rank] if of.query_rank else []), *(heads * each for each in by_heads), key, key, of.rank)

    def make(self, rows: int, take: Take) -> LatentBuffers:
        return LatentBuffers(self, rows, take)


class LowBuffers:
    """For T rows: low (T, query rank) queries before their second product; q (T, heads * key_dim) queries as they come,
    q_rows the same (T * heads, key_dim); kv (T, rank + rotated) a position's vector as it comes."""

    def __init__(self, heads: int, of: LatentNumbers, rows: int, take: Take) -> None:
        self.low = take(of.query_rank) if of.query_rank else None
        self.q = take(heads * of.key_dim)
        self.q_rows = self.q.reshape(rows * heads, of.key_dim)
        self.kv = take(of.rank + of.rotated_dim)


class LatentBuffers(LowBuffers):
    """For T rows: plain (T * heads, plain_dim) queries' dimensions that are not rotated; query (T, heads, rotated +
    rank); read (T, heads, rank) what attention reads, out (T, heads * value_dim) the heads' results; key (T, 1, rotated
    + rank) and value (T, 1, rank)."""

    def __init__(self, layout: LatentLayout, rows: int, take: Take) -> None:
        super().__init__(layout.heads, layout.latent, rows, take)
        heads, of = layout.heads, layout.latent
        width = of.rotated_dim + of.rank
        self.plain = take(heads * of.plain_dim).reshape(rows * heads, of.plain_dim)
        self.query = take(heads * width).reshape(rows, heads, width)
        self.query_rows = self.query.reshape(rows * heads, width)
        self.read = take(heads * of.rank).reshape(rows, heads, of.rank)
        self.read_rows = self.read.reshape(rows * heads, of.rank)
        self.out = take(heads * of.value_dim)
        self.out_heads = self.out.reshape(rows, heads, of.value_dim)
        self.key = take(width)
        self.key_heads = self.key.reshape(rows, 1, width)
        self.value = take(of.rank)
        self.value_heads = self.value.reshape(rows, 1, of.rank)


@dataclass(frozen=True)
class LatentAttention:
    """x += output(attention(...)), as above.

    warmth: what turns nothing, and multiplies late queries. low, queries: the products that make queries, the first of
    which a model may not have; position: that of a position's vector.
    """

    heads: int
    latent: LatentNumbers
    rotation: Rotation
    warmth: Rotation | None
    rope: RopeKind
    scale: float
    eps: float
    low: Product | None
    queries: Product
    position: Product
    output: Product

    @property
    def state(self) -> None:
        return None

    @property
    def kv(self) -> KvLayer:
        """What it keeps of a position."""
        return self.keys_and_values

    def reads(self, layer: int) -> int:
        """The layer whose keys and values it reads: its own."""
        return layer

    @cached_property
    def keys_and_values(self) -> KvLayer:
        """What it reads of a position."""
        return KvLayer(1, self.latent.rotated_dim + self.latent.rank, self.latent.rank, in_keys=True)

    @property
    def common_tensors(self) -> dict[str, Tensor]:
        """Those of queries, of a position's vector and of the output."""
        products = [each for each in (self.low, self.queries, self.position, self.output) if each is not None]
        return {**product_tensors(*products), "attn_kv_a_norm": Tensor((self.latent.rank,))}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        of = self.latent
        return {
            **self.common_tensors,
            "attn_k_b": Tensor((self.heads, of.rank, of.plain_dim)),
            "attn_v_b": Tensor((self.heads, of.value_dim, of.rank)),
        }

    @property
    def products(self) -> tuple[Product, ...]:
        """None that a prompt backend could compute."""
        return ()

    @property
    def sums(self) -> tuple[Reduction, ...]:
        return self.output.sums

    @property
    def floats(self) -> int:
        return 2 * sum(self.layout.widths)

    @cached_property
    def layout(self) -> LatentLayout:
        """Of its buffers."""
        return LatentLayout(self.heads, self.latent)

    @property
    def layouts(self) -> tuple[LatentLayout, ...]:
        return (self.layout,)

    def forward(self, here: Here, x: F32, places: Places, s: Scratch) -> None:
        b, kernels = s.of(self.layout), here.kernels
        kernels.rms_norm(x, here.vectors["attn_norm"], self.eps, s.h)
        self._make_queries(here, s.h, b)
        self._make_position(here, b)
        self.rotate(here, places, b.query, b.key_heads)
        spans = places.spans(here.layer)
        kernels.kv_write(spans, b.key_heads, b.value_heads)
        kernels.attention(b.query, spans, b.read, scale=self.scale)
        kernels.matmul_heads(here.weights.matrices["attn_v_b"], kernels.activations(b.read_rows), b.out_heads)
        add_product(here, self.output, b.out, x, s)

    def rotate(self, here: Here, places: Places, query: F32, key: F32) -> None:
        """The first dimensions of query and key (T, heads, ..); queries of late positions are multiplied."""
        cos, sin = places.rotation(here.tools.ropes[self.rotation])
        for rows in (query, key):
            here.kernels.rope(rows, cos, sin, self.rope)
        if self.warmth is not None:
            cos, sin = places.rotation(here.tools.ropes[self.warmth])
            here.kernels.rope(query, cos, sin, self.rope)

    def multiply_inputs(self, here: Here, h: F32, b: LowBuffers) -> None:
        """b.q and b.kv of the normed rows h (T, d)."""
        kernels, matrices = here.kernels, here.weights.matrices
        first = b.q if b.low is None else b.low
        name = (self.low or self.queries).parts[0].tensor
        kernels.matmul_many([matrices[name], matrices["attn_kv_a_mqa"]], kernels.activations(h), [first, b.kv])
        scale_and_bias(here, name, first)
        scale_and_bias(here, "attn_kv_a_mqa", b.kv)
        if b.low is not None:
            kernels.rms_norm(b.low, here.vectors[self.queries.norm], self.eps, b.low)
            kernels.matmul(matrices["attn_q_b"], kernels.activations(b.low), b.q)
            scale_and_bias(here, "attn_q_b", b.q)

    def _make_queries(self, here: Here, h: F32, b: LatentBuffers) -> None:
        """b.query, not yet rotated, and b.kv of the normed rows h (T, d)."""
        self.multiply_inputs(here, h, b)
        kernels, matrices = here.kernels, here.weights.matrices
        rotated, plain = self.latent.rotated_dim, self.latent.plain_dim
        kernels.copy(b.q_rows[:, :plain], b.plain)
        kernels.copy(b.q_rows[:, plain:], b.query_rows[:, :rotated])
        kernels.matmul_heads(matrices["attn_k_b"], kernels.activations(b.plain), b.query[..., rotated:])

    def _make_position(self, here: Here, b: LatentBuffers) -> None:
        """b.key, not yet rotated, and b.value of b.kv."""
        kernels, rotated, rank = here.kernels, self.latent.rotated_dim, self.latent.rank
        kernels.copy(b.kv[:, :rank], b.value)
        kernels.rms_norm(b.value, here.vectors["attn_kv_a_norm"], self.eps, b.value)
        kernels.copy(b.kv[:, rank:], b.key[:, :rotated])
        kernels.copy(b.value, b.key[:, rotated:])


def latent_attention_of(
    spec: ModelSpec, layer: int, kind: type[LatentAttention] = LatentAttention
) -> LatentAttention | AbsentMixer:
    """A layer's latent attention, as its numbers say."""
    numbers, d, eps = spec.layers[layer], spec.d_model, spec.norm_eps
    of, rotation = numbers.latent, numbers.rotation
    assert of is not None and rotation is not None  # reading.py
    units = spec.units(layer)
    output = Product(
        "o",
        numbers.n_heads * of.value_dim,
        (Part("t", "attn_output", 0, d),),
        eps=eps,
        units=None if units is None else units.mixer,
    )
    if not numbers.n_heads:
        return AbsentMixer(output, (), numbers.kv)
    low = None
    queries = Product("q", d, (Part("q", "attn_q", 0, numbers.n_heads * of.key_dim),), "attn_norm", eps=eps)
    if of.query_rank:
        low = Product("q", d, (Part("low", "attn_q_a", 0, of.query_rank),), "attn_norm", eps=eps)
        q = Part("q", "attn_q_b", 0, numbers.n_heads * of.key_dim)
        queries = Product("q", of.query_rank, (q,), "attn_q_a_norm", eps=eps)
    return kind(
        heads=numbers.n_heads,
        latent=of,
        rotation=rotation,
        warmth=numbers.q_rotation if numbers.temperature is not None else None,
        rope=spec.family.rope,
        scale=of.key_dim**-0.5 * of.score_factor,
        eps=eps,
        low=low,
        queries=queries,
        position=Product("kv", d, (Part("kv", "attn_kv_a_mqa", 0, of.rank + of.rotated_dim),), "attn_norm", eps=eps),
        output=output,
    )
