"""A model's numbers, read from GGUF metadata and checked before anything is allocated from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.kernels.interface import Activation
from edgerun.kernels.routing import RouterKind
from edgerun.kv import Group, KvLayer, KvOptions, layer_groups, sequence_bytes
from edgerun.models.families import Family, family_of

_LIMITS = {  # generous, but they keep a hostile file from asking for the moon
    "block_count": 1024,
    "nextn_predict_layers": 1024,
    "embedding_length": 1 << 20,
    "context_length": 1 << 28,
    "feed_forward_length": 1 << 22,
    "attention.head_count": 4096,
    "attention.head_count_kv": 4096,
    "attention.key_length": 8192,
    "attention.value_length": 8192,
    "rope.dimension_count": 8192,
    "expert_count": 4096,
    "expert_used_count": 4096,
    "expert_feed_forward_length": 1 << 22,
    "expert_shared_feed_forward_length": 1 << 22,
    "attention.sliding_window": 1 << 28,
    "attention.sliding_window_pattern": 1024,
    "expert_gating_func": 1 << 16,
    "rope.scaling.original_context_length": 1 << 28,
}


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the training length are squeezed: kind "none", "linear", "yarn" or "longrope"."""

    kind: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class Rotation:
    """One way of rotating queries and keys: `dim` dimensions of each head, by angles that begin with `base`.
    from_file: divided by the factors that the file may have."""

    dim: int
    base: float
    scaling: RopeScaling = field(default_factory=RopeScaling)
    from_file: bool = True


@dataclass(frozen=True)
class LayerNumbers:
    """What may differ from layer to layer. A mixture of experts has no feed-forward of `d_ff`; others no experts."""

    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    d_ff: int
    rotation: Rotation | None  # None: positions are not told apart by it
    window: int = 0  # positions that are seen, 0 for all
    n_experts: int = 0
    n_experts_used: int = 0
    d_ff_expert: int = 0
    d_ff_shared: int = 0

    @property
    def kv(self) -> KvLayer:
        """What the layer keeps of a position."""
        return KvLayer(self.n_kv_heads, self.head_dim_k, self.head_dim_v, self.window)


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
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    activation: Activation = "silu"
    router: RouterKind = "softmax"
    sparse: bool = False  # up and down lie neuron by neuron, of which only those that fire are used
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict, compare=False, repr=False)  # of the file, checked
    unused: tuple[str, ...] = ()  # what the user should know of tensors that are not used

    @property
    def n_layers(self) -> int:
        """Layers."""
        return len(self.layers)

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

    def attention_scale(self, layer: int) -> float:
        """What scores are multiplied by."""
        numbers = self.layers[layer]
        wide = self.family.wide_scale_layers == self.n_layers
        return float((self.d_model / numbers.n_heads if wide else numbers.head_dim_k) ** -0.5)

    def kv_groups(self, kv: KvOptions | None = None) -> tuple[Group, ...]:
        """Layers whose keys and values lie in pages together. UnsupportedError for heads that cannot be kept so."""
        return layer_groups([layer.kv for layer in self.layers], kv)

    def kv_bytes(self, positions: int, at_once: int | None = None, kv: KvOptions | None = None) -> int:
        """Memory for the keys and values of a sequence that grows by `at_once` positions at most (all)."""
        return sequence_bytes(self.kv_groups(kv), positions, positions if at_once is None else at_once)


class _Numbers:
    """Metadata under the architecture's prefix, typed and bounded."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self._metadata = metadata
        self._prefix = prefix

    def _value(self, key: str) -> Any:
        value = self._metadata.get(f"{self._prefix}.{key}")
        if isinstance(value, list):
            raise FormatError(f"{self._prefix}.{key} must be a number, got {len(value)} strings")
        if isinstance(value, np.ndarray):  # one a layer, all alike in the models that edgerun runs
            values = np.unique(value)
            if len(values) == 0:
                raise FormatError(f"{self._prefix}.{key} must be a number, got an array of none")
            if len(values) > 1:
                raise UnsupportedError(f"{self._prefix}.{key} differs between layers: {values[:8].tolist()}")
            return values[0].item()
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._value(key)
        if value is None:
            if default is None:
                raise FormatError(f"the file lacks {self._prefix}.{key}")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise FormatError(f"{self._prefix}.{key} must be an integer, got {value!r}")
        if not least <= int(value) <= _LIMITS[key]:
            raise FormatError(f"{self._prefix}.{key} is {value}; expected {least} to {_LIMITS[key]}")
        return int(value)

    def by_layer(self, key: str, layers: int, default: Sequence[int] | None = None, least: int = 1) -> list[int]:
        """One integer a layer: the file says one for all or an array of as many (default: `default`)."""
        value = self._metadata.get(f"{self._prefix}.{key}")
        if not isinstance(value, np.ndarray) or len(value) == 0:
            if value is None and default is not None:
                return list(default)
            return [self.integer(key, None, least)] * layers
        if value.dtype.kind not in "iu":
            raise FormatError(f"{self._prefix}.{key} must be integers, got an array of {value.dtype}")
        if len(value) < layers:
            raise FormatError(f"{self._prefix}.{key} has {len(value)} numbers for {layers} layers")
        for each in value.tolist():
            if not least <= each <= _LIMITS[key]:
                raise FormatError(f"{self._prefix}.{key} has {each}; expected {least} to {_LIMITS[key]}")
        return [int(each) for each in value.tolist()[:layers]]

    def windowed(self, family: Family, layers: int) -> list[bool]:
        """Which layers see no more than the window: by the file, as one truth a layer or as n (of every n layers all
        but one do), or by the family. None where the family has no windows."""
        key = "attention.sliding_window_pattern"
        value = self._metadata.get(f"{self._prefix}.{key}")
        if not family.window_pattern:
            return [False] * layers
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            if len(value) < layers:
                raise FormatError(f"{self._prefix}.{key} has {len(value)} truths for {layers} layers")
            return [bool(each) for each in value[:layers]]
        every = self.integer(key, family.window_pattern, 0)
        if every == 0:
            return [True] * layers
        sees_all = 0 if family.window_after else every - 1
        return [layer % every != sees_all for layer in range(layers)]

    def real(self, key: str, default: float) -> float:
        value = self._value(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise FormatError(f"{self._prefix}.{key} must be a number, got {value!r}")
        if not np.isfinite(value):
            raise FormatError(f"{self._prefix}.{key} is {value}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._metadata.get(f"{self._prefix}.{key}", default)
        if not isinstance(value, str):
            raise FormatError(f"{self._prefix}.{key} must be a string, got {value!r}")
        return value


def read_spec(gguf: GgufFile) -> ModelSpec:
    """Read the numbers. Raises UnsupportedError for unknown architectures, FormatError for impossible values."""
    architecture = gguf.architecture
    family = family_of(architecture)
    n = _Numbers(gguf.metadata, architecture)
    sparse = "blk.0.ffn_down_t.weight" in gguf.tensors
    layers = _layers(gguf, n, family)
    if family.early_router and not layers[0].n_experts:
        raise FormatError(f"a {architecture} is a mixture of experts; the file lacks {architecture}.expert_count")
    eps = n.real("attention.layer_norm_rms_epsilon", 1e-5)
    if not 0.0 < eps < 1.0:
        raise FormatError(f"impossible numbers: norm epsilon {eps}")
    experts = any(layer.n_experts for layer in layers)
    if sparse and (experts or family.fused_gate_up or family.sub_norms or family.post_norms):
        raise UnsupportedError(f"a {architecture} with ffn_down_t is not supported: only plain gated feed-forwards are")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError("the file has no matrix token_embd.weight: it holds no model")
    return ModelSpec(
        architecture=architecture,
        family=family,
        layers=layers,
        d_model=n.integer("embedding_length"),
        vocab_size=embedding.shape[0],
        context_length=n.integer("context_length", 4096),
        norm_eps=eps,
        expert_scale=n.real("expert_weights_scale", 1.0) or 1.0,
        attention_softcap=n.real("attn_logit_softcapping", 0.0),
        logit_softcap=n.real("final_logit_softcapping", 0.0),
        activation=_activation(n, family, sparse),
        router=_router(n, family),
        sparse=sparse,
    )


def _layers(gguf: GgufFile, n: _Numbers, family: Family) -> tuple[LayerNumbers, ...]:
    """Every layer's numbers but those of layers that guess further tokens (MTP): see shapes.check_tensors."""
    count = _layer_count(gguf, n)
    d_model = n.integer("embedding_length")
    heads = n.by_layer("attention.head_count", count)
    if n.integer("attention.key_length", 0, 1) == 0 and d_model % heads[0]:
        raise FormatError(f"{d_model} dimensions cannot be divided among {heads[0]} heads")
    kv_heads = n.by_layer("attention.head_count_kv", count, heads)
    for mine, shared in zip(heads, kv_heads, strict=True):
        if mine % shared:
            raise FormatError(f"{mine} heads cannot share {shared} key/value heads")
    head_dim = d_model // heads[0]
    head_dim_k = n.integer("attention.key_length", head_dim)
    head_dim_v = n.integer("attention.value_length", head_dim)
    windowed, window = n.windowed(family, count), n.integer("attention.sliding_window", 0, 0)
    if family.window_pattern and not family.window_optional and window == 0:
        raise FormatError(f"the file lacks {gguf.architecture}.attention.sliding_window")
    plain, local = _rotations(n, family, head_dim_k)
    experts = n.integer("expert_count", 0, 0)
    used = n.by_layer("expert_used_count", count, [0] * count, 0)
    for each in used:
        if experts and not 1 <= each <= experts:
            raise FormatError(f"cannot use {each} of {experts} experts")
    d_ff = n.by_layer("feed_forward_length", count, [0] * count, 0)
    d_ff_expert = n.by_layer("expert_feed_forward_length", count, d_ff, 0)
    d_ff_shared = n.integer("expert_shared_feed_forward_length", 0, 0)
    found = []
    for layer in range(count):
        narrow = windowed[layer] and window > 0
        unrotated = family.rope_in_window and window > 0 and not narrow
        numbers = LayerNumbers(
            n_heads=heads[layer],
            n_kv_heads=kv_heads[layer],
            head_dim_k=head_dim_k,
            head_dim_v=head_dim_v,
            d_ff=d_ff[layer],
            rotation=None if unrotated else local if narrow else plain,
            window=window if narrow else 0,
        )
        if experts:
            numbers = replace(
                numbers,
                n_experts=experts,
                n_experts_used=used[layer],
                d_ff_expert=d_ff_expert[layer] or d_ff[layer],
                d_ff_shared=d_ff_shared,
            )
        found.append(numbers)
    return tuple(found)


def _layer_count(gguf: GgufFile, n: _Numbers) -> int:
    blocks, further = n.integer("block_count"), n.integer("nextn_predict_layers", 0, 0)
    name = f"{gguf.architecture}.block_count"
    if f"blk.{blocks}.attn_norm.weight" in gguf.tensors:  # a model cut short would talk nonsense, not fail
        raise FormatError(f"{name} is {blocks}, but the file holds tensors of layer {blocks} (blk.{blocks}...)")
    if further >= blocks:
        raise FormatError(f"{gguf.architecture}.nextn_predict_layers is {further} of {blocks} layers: none is left")
    return blocks - further


def _rotations(n: _Numbers, family: Family, head_dim: int) -> tuple[Rotation, Rotation]:
    """Of layers that see all, and of those with a window."""
    dim = n.integer("rope.dimension_count", head_dim, 2)
    if dim > head_dim or dim % 2:
        raise FormatError(f"cannot rotate {dim} of {head_dim} dimensions")
    base = n.real("rope.freq_base", 10000.0)
    if base <= 1.0:
        raise FormatError(f"impossible numbers: rope base {base}")
    plain = Rotation(dim, base, _rope_scaling(n, n.integer("context_length", 4096)))
    if not family.local_rope_base:
        return plain, plain
    return plain, Rotation(dim, family.local_rope_base, from_file=False)


def _activation(n: _Numbers, family: Family, sparse: bool) -> Activation:
    """What the file says, or the family has; a file of neurons without a word is a ReLU model (PowerInfer's)."""
    said = n.text("hidden_activation", "relu" if sparse else family.activation)
    known: tuple[Activation, ...] = get_args(Activation)
    found = next((each for each in known if each == said), None)
    if found is None:
        raise UnsupportedError(f"the activation {said!r} is not supported; edgerun knows {', '.join(known)}")
    if sparse and found not in ("relu", "relu2"):
        raise FormatError(
            f"the file holds ffn_down_t, for neurons that mostly do not fire; with {found} all of them do"
        )
    return found


def _router(n: _Numbers, family: Family) -> RouterKind:
    """llama.cpp's expert_gating_func, where the file says one."""
    kinds: dict[int, RouterKind] = {0: family.router, 1: "softmax", 2: "sigmoid", 3: "softmax_topk"}
    said = n.integer("expert_gating_func", 0, 0)
    if said not in kinds:
        raise UnsupportedError(f"the gating function {said} of its experts is not supported")
    return kinds[said]


def _rope_scaling(n: _Numbers, context: int) -> RopeScaling:
    kind = n.text("rope.scaling.type", "none")
    factor = n.real("rope.scaling.factor", 0.0) or n.real("rope.scale_linear", 0.0) or 1.0
    if kind == "none" and factor != 1.0:
        kind = "linear"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedError(f"rope scaling {kind!r} is not supported")
    if not 1e-3 <= factor <= 1e6:
        raise FormatError(f"impossible rope scaling factor {factor}")
    scaling = RopeScaling(
        kind=kind,
        factor=factor,
        original_context=n.integer("rope.scaling.original_context_length", context),
        attention_factor=n.real("rope.scaling.attn_factor", 1.0) or 1.0,
        beta_fast=n.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=n.real("rope.scaling.yarn_beta_slow", 1.0),
    )
    for what, number in (
        ("attention factor", scaling.attention_factor),
        ("yarn_beta_fast", scaling.beta_fast),
        ("yarn_beta_slow", scaling.beta_slow),
    ):
        if not 1e-3 <= number <= 1e6:
            raise FormatError(f"impossible numbers: rope scaling {what} {number}")
    return scaling
