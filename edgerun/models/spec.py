"""A model's numbers, read from GGUF metadata and checked before anything is allocated from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufFile, TensorInfo
from edgerun.kernels.interface import Activation, RouterKind
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
class ModelSpec:
    """Everything about a model but its weights."""

    architecture: str
    family: Family
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_dim: int
    rope_base: float
    rope_scaling: RopeScaling
    n_experts: int
    n_experts_used: int
    d_ff_expert: int
    d_ff_shared: int
    expert_scale: float
    sliding_window: int
    attention_softcap: float
    logit_softcap: float
    activation: Activation = "silu"
    router: RouterKind = "softmax"
    sparse: bool = False  # up and down lie neuron by neuron, of which only those that fire are used
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict, compare=False, repr=False)  # of the file, checked
    unused: tuple[str, ...] = ()  # what the user should know of tensors that are not used

    def window(self, layer: int) -> int:
        """How many positions this layer sees, 0 for all."""
        pattern = self.family.window_pattern
        if not pattern:
            return 0
        sees_all = 0 if self.family.window_after else pattern - 1
        return self.sliding_window if layer % pattern != sees_all else 0

    def rotates(self, layer: int) -> bool:
        """Whether this layer's queries and keys are rotated."""
        return not (self.family.rope_in_window and self.sliding_window) or self.window(layer) > 0

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        wide = self.family.wide_scale_layers == self.n_layers
        return float((self.d_model / self.n_heads if wide else self.head_dim_k) ** -0.5)

    def kv_groups(self, kv: KvOptions | None = None) -> tuple[Group, ...]:
        """Layers whose keys and values lie in pages together. UnsupportedError for heads that cannot be kept so."""
        one = KvLayer(self.n_kv_heads, self.head_dim_k, self.head_dim_v)
        return layer_groups([replace(one, window=self.window(layer)) for layer in range(self.n_layers)], kv)

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
    d_model, n_heads = n.integer("embedding_length"), n.integer("attention.head_count")
    if n.integer("attention.key_length", 0, 1) == 0 and d_model % n_heads:
        raise FormatError(f"{d_model} dimensions cannot be divided among {n_heads} heads")
    head_dim = d_model // n_heads
    n_kv_heads = n.integer("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        raise FormatError(f"{n_heads} heads cannot share {n_kv_heads} key/value heads")
    head_dim_k = n.integer("attention.key_length", head_dim)
    rope_dim = n.integer("rope.dimension_count", head_dim_k, 2)
    if rope_dim > head_dim_k or rope_dim % 2:
        raise FormatError(f"cannot rotate {rope_dim} of {head_dim_k} dimensions")
    n_experts = n.integer("expert_count", 0, 0)
    used = n.integer("expert_used_count", 0, 0)
    if n_experts and not 1 <= used <= n_experts:
        raise FormatError(f"cannot use {used} of {n_experts} experts")
    if family.early_router and not n_experts:
        raise FormatError(f"a {architecture} is a mixture of experts; the file lacks {architecture}.expert_count")
    d_ff = n.integer("feed_forward_length", 0, 0)
    if family.window_pattern and not family.window_optional and n.integer("attention.sliding_window", 0, 0) == 0:
        raise FormatError(f"the file lacks {architecture}.attention.sliding_window")
    base = n.real("rope.freq_base", 10000.0)
    eps = n.real("attention.layer_norm_rms_epsilon", 1e-5)
    if base <= 1.0 or not 0.0 < eps < 1.0:
        raise FormatError(f"impossible numbers: rope base {base}, norm epsilon {eps}")
    sparse = "blk.0.ffn_down_t.weight" in gguf.tensors
    if sparse and (n_experts or family.fused_gate_up or family.sub_norms or family.post_norms):
        raise UnsupportedError(f"a {architecture} with ffn_down_t is not supported: only plain gated feed-forwards are")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError("the file has no matrix token_embd.weight: it holds no model")
    context = n.integer("context_length", 4096)
    blocks, further = n.integer("block_count"), n.integer("nextn_predict_layers", 0, 0)
    if f"blk.{blocks}.attn_norm.weight" in gguf.tensors:  # a model cut short would talk nonsense, not fail
        raise FormatError(
            f"{architecture}.block_count is {blocks}, but the file holds tensors of layer {blocks} (blk.{blocks}...)"
        )
    if further >= blocks:
        raise FormatError(f"{architecture}.nextn_predict_layers is {further} of {blocks} layers: none is left")
    return ModelSpec(
        architecture=architecture,
        family=family,
        n_layers=blocks - further,  # the last ones guess further tokens (MTP): see shapes.check_tensors
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim_k=head_dim_k,
        head_dim_v=n.integer("attention.value_length", head_dim),
        vocab_size=embedding.shape[0],
        context_length=context,
        norm_eps=eps,
        rope_dim=rope_dim,
        rope_base=base,
        rope_scaling=_rope_scaling(n, context),
        n_experts=n_experts,
        n_experts_used=used,
        d_ff_expert=n.integer("expert_feed_forward_length", d_ff, 0) or d_ff,
        d_ff_shared=n.integer("expert_shared_feed_forward_length", 0, 0),
        expert_scale=n.real("expert_weights_scale", 1.0) or 1.0,
        sliding_window=n.integer("attention.sliding_window", 0, 0),
        attention_softcap=n.real("attn_logit_softcapping", 0.0),
        logit_softcap=n.real("final_logit_softcapping", 0.0),
        activation=_activation(n, family, sparse),
        router=_router(n, family),
        sparse=sparse,
    )


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
