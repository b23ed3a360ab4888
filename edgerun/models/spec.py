"""A model's numbers: everything about it but its weights. They are read from a file by `reading.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgerun.formats.gguf import TensorInfo
from edgerun.kernels.interface import Activation
from edgerun.kernels.routing import RouterKind
from edgerun.kv import KvLayer
from edgerun.models.families import Family


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the training length are squeezed: kind "none", "linear", "yarn" or "longrope"."""

    kind: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0


@dataclass(frozen=True)
class Temperature:
    """Queries at position t are multiplied by 1 + scale * log(1 + (t + offset) // length)."""

    scale: float
    length: int
    offset: int = 0


@dataclass(frozen=True)
class Rotation:
    """One way of rotating queries and keys: `dim` dimensions of each head, by angles that begin with `base`.
    from_file: divided by the factors that the file may have. temperature: what is rotated is multiplied too. still: by
    no angle at all. most: positions beyond are rotated as this one; 0: each as itself."""

    dim: int
    base: float
    scaling: RopeScaling = field(default_factory=RopeScaling)
    from_file: bool = True
    temperature: Temperature | None = None
    still: bool = False
    most: int = 0


@dataclass(frozen=True)
class Recurrence:
    """Of a layer whose positions see each other through a state: a convolution of so many taps over heads of queries,
    keys and values, then a matrix (key_dim, value_dim) for each head of values. packed_inner: all its products but
    those of the steps are one matrix in the file; packed_steps: those are. turn: as of `Kernels.scan`."""

    taps: int
    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    packed_inner: bool = False
    packed_steps: bool = False
    turn: int = 1

    @property
    def group(self) -> int:
        """Heads that share a key head."""
        return self.heads // max(1, self.key_heads)

    @property
    def inner(self) -> int:
        """Columns of all values together."""
        return self.heads * self.value_dim

    @property
    def conv_cols(self) -> int:
        """Columns that the convolution goes over: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.inner


@dataclass(frozen=True)
class LatentNumbers:
    """Of latent attention. query_rank: what queries go through, 0 for nothing; rank: of what is kept of a position;
    plain_dim, rotated_dim: of a head's query; value_dim: of a head's result; score_factor: what scores are multiplied
    by beside one over the root of `key_dim`. expanded: of a position every head's own keys and values are kept."""

    query_rank: int
    rank: int
    plain_dim: int
    rotated_dim: int
    value_dim: int
    score_factor: float
    expanded: bool = False

    @property
    def key_dim(self) -> int:
        """Of a head's query."""
        return self.plain_dim + self.rotated_dim


@dataclass(frozen=True)
class LayerNumbers:
    """What may differ from layer to layer. A mixture of experts has no feed-forward of `d_ff`; others no experts.
    conv_taps: of a short convolution over conv_cols columns, that stands in place of attention; so may a recurrence."""

    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    d_ff: int
    rotation: Rotation | None  # None: positions are not told apart by it
    window: int = 0  # positions that are seen, 0 for all
    chunked: bool = False  # those of its own stretch of `window` positions, which begins at a multiple of it
    qk_normed: bool = True  # as the family norms queries and keys
    kept_first: int = 0  # of the first positions so many are seen whatever the window
    packed_qkv: bool = False  # one matrix attn_qkv
    v_from_k: bool = False  # there is no attn_v: v is what attn_k gives
    gate_per_head: bool = False  # attn_gate gives one number a head
    temperature: Temperature | None = None  # of queries
    kv_source: int | None = None  # whose keys and values it reads, where it has none of its own
    n_experts: int = 0
    n_experts_used: int = 0
    d_ff_expert: int = 0
    d_ff_shared: int = 0
    dense_beside: bool = False  # a mixture has a feed-forward of d_ff as well
    conv_taps: int = 0
    conv_cols: int = 0
    recurrence: Recurrence | None = None
    latent: LatentNumbers | None = None
    fused_gate_up: bool = False  # ffn_up holds gate, then up
    fused_experts: bool = False  # ffn_gate_up_exps does
    fused_shared: bool = False  # ffn_up_shexp does
    gate_deviations: float = 0.0  # of gates only what is so many deviations above their mean is let through; 0: all

    @property
    def beside_cols(self) -> int:
        """Columns of what every token passes beside a mixture's experts: of a shared one, or of a feed-forward."""
        return self.d_ff if self.dense_beside else self.d_ff_shared

    @property
    def q_rotation(self) -> Rotation | None:
        """Of queries, which also multiplies them by the temperature."""
        if self.temperature is None:
            return self.rotation
        if self.latent is not None:  # of which more is multiplied than is rotated
            of = self.latent
            width = of.key_dim if of.expanded else of.rotated_dim + of.rank
            return Rotation(width, 10000.0, temperature=self.temperature, from_file=False, still=True)
        still = Rotation(self.head_dim_k, 10000.0, from_file=False, still=True)
        return replace(self.rotation or still, temperature=self.temperature)

    @property
    def far_rotation(self) -> Rotation | None:
        """Of queries for what is seen whatever the window: as if it stood just before the window."""
        rotation = self.q_rotation
        return None if rotation is None else replace(rotation, most=self.window + self.kept_first - 1)

    @property
    def kv(self) -> KvLayer:
        """What the layer keeps of a position."""
        if self.latent is not None and self.latent.expanded:
            return KvLayer(self.n_heads, self.latent.key_dim, self.latent.value_dim)
        if self.latent is not None:
            kept = min(1, self.n_heads)  # one vector for all heads, which a share without any does not need
            return KvLayer(kept, self.latent.rotated_dim + self.latent.rank, self.latent.rank, in_keys=True)
        heads = self.n_kv_heads, self.head_dim_k, self.head_dim_v
        return KvLayer(*heads, self.window, self.chunked, kept_first=self.kept_first)


@dataclass(frozen=True)
class Units:
    """Equal parts of what a sum over ranks goes over (heads, columns of a feed-forward): `count` of all ranks, and
    those that this one has. Each gives a result of its own, so that the sum is the same however they are dealt out. A
    layer without such a sum has a count of 0."""

    count: int
    held: range


@dataclass(frozen=True)
class LayerUnits:
    """Of a layer's two sums."""

    mixer: Units
    feed_forward: Units


@dataclass(frozen=True)
class Shard:
    """Of a spec that is one rank's share of a model (`share.py`): `whole`, the model's own numbers; which experts of
    each layer are held; how many rows of the vocabulary; whether the embedding is. units: of each layer, where sums
    are made of units; else none."""

    whole: tuple[LayerNumbers, ...]
    experts: tuple[range, ...]
    vocabulary: int
    text: bool
    units: tuple[LayerUnits, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model but its weights."""

    architecture: str
    family: Family
    layers: tuple[LayerNumbers, ...]
    d_model: int
    vocab_size: int
    context_length: int
    norm_eps: float
    expert_scale: float = 1.0
    renormalise: bool = True  # the chosen experts' weights sum to one
    expert_groups: int = 1
    expert_groups_used: int = 1
    expert_latent: int = 0  # width that experts work in; 0: d_model
    embedding_scale: float = 1.0  # of what enters the first layer
    residual_scale: float = 1.0  # of what a mixer or a feed-forward adds
    logit_scale: float = 1.0
    per_layer_width: int = 0  # of what every layer is fed beside; 0: nothing
    streams: int = 1  # that the residual is: (rows, streams * d_model) go through the layers
    score_scale: float = 0.0  # of scores; 0: head_dim ** -0.5
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    activation: Activation = "silu"
    router: RouterKind = "softmax"
    sparse: bool = False  # up and down lie neuron by neuron, of which only those that fire are used
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict, compare=False, repr=False)  # of the file, checked
    unused: tuple[str, ...] = ()  # what the user should know of tensors that are not used
    shard: Shard | None = None  # None: the whole model

    @property
    def n_layers(self) -> int:
        """Layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Of a row that goes through the layers."""
        return self.streams * self.d_model

    @property
    def n_experts(self) -> int:
        """Experts of a layer that has the most; 0: a dense model."""
        return max(layer.n_experts for layer in self.layers)

    @property
    def n_experts_used(self) -> int:
        """Of a layer that uses the most."""
        return max(layer.n_experts_used for layer in self.layers)

    @property
    def rope_dim(self) -> int:
        """Dimensions that the file's factors of the rotation are for; 0: nothing is rotated."""
        rotations = [layer.rotation for layer in self.layers if layer.rotation is not None]
        return max((each.dim for each in rotations if each.from_file), default=0)

    @property
    def whole(self) -> tuple[LayerNumbers, ...]:
        """The layers of the whole model: of a shard those that it is a part of."""
        return self.layers if self.shard is None else self.shard.whole

    def units(self, layer: int) -> LayerUnits | None:
        """Of a layer of a shard whose sums are made of units."""
        return self.shard.units[layer] if self.shard is not None and self.shard.units else None

    @property
    def rotations(self) -> frozenset[Rotation]:
        """All ways in which keys or queries of some layer are rotated."""
        found = {each for layer in self.layers for each in (layer.rotation, layer.q_rotation)}
        found |= {layer.far_rotation for layer in self.layers if layer.kept_first}
        return frozenset(each for each in found if each is not None)

    def attention_scale(self, layer: int) -> float:
        """What scores are multiplied by."""
        if self.score_scale:
            return self.score_scale
        numbers = self.whole[layer]
        wide = self.family.wide_scale_layers == self.n_layers
        return float((self.d_model / numbers.n_heads if wide else numbers.head_dim_k) ** -0.5)
