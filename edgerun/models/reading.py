"""A model's numbers are read from GGUF metadata, and checked before anything is allocated from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import Activation, RouterKind
from edgerun.models.attention_numbers import attention_layers
from edgerun.models.families import Family, family_of
from edgerun.models.latent import latent_layer
from edgerun.models.numbers import Numbers
from edgerun.models.recurrences import recurrences_of
from edgerun.models.spec import LayerNumbers, ModelSpec


@dataclass(frozen=True)
class WholeModel:
    """What a model's tensors say of its numbers. sparse: as `ModelSpec`'s."""

    vocab_size: int
    sparse: bool


def read_spec(gguf: GgufFile, whole: WholeModel | None = None) -> ModelSpec:
    """Read the numbers. `whole`: where the file has only some of the model's tensors, what all of them say. Raises
    UnsupportedError for unknown architectures, FormatError for impossible values."""
    architecture = gguf.architecture
    family = family_of(architecture)
    n = Numbers(gguf.metadata, architecture)
    whole = whole or _whole_model(gguf)
    sparse = whole.sparse
    layers = _layers(gguf, n, family)
    if family.early_router and not layers[0].n_experts:
        raise FormatError(f"a {architecture} is a mixture of experts; the file lacks {architecture}.expert_count")
    eps = n.real("attention.layer_norm_rms_epsilon", 1e-5)
    if not 0.0 < eps < 1.0:
        raise FormatError(f"impossible numbers: norm epsilon {eps}")
    experts = any(layer.n_experts for layer in layers)
    if sparse and (experts or family.fused_gate_up or family.sub_norms or family.post_norms):
        raise UnsupportedError(f"a {architecture} with ffn_down_t is not supported: only plain gated feed-forwards are")
    return ModelSpec(
        architecture=architecture,
        family=family,
        layers=layers,
        d_model=n.integer("embedding_length"),
        vocab_size=whole.vocab_size,
        context_length=n.integer("context_length", 4096),
        norm_eps=eps,
        expert_scale=n.real("expert_weights_scale", 1.0) or 1.0,
        score_scale=family.score_scale or n.real("attention.scale", 0.0),
        attention_softcap=n.real("attn_logit_softcapping", 0.0),
        logit_softcap=n.real("final_logit_softcapping", 0.0),
        activation=_activation(n, family, sparse),
        router=_router(n, family),
        sparse=sparse,
    )


def _whole_model(gguf: GgufFile) -> WholeModel:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError("the file has no matrix token_embd.weight: it holds no model")
    return WholeModel(embedding.shape[0], "blk.0.ffn_down_t.weight" in gguf.tensors)


def _layers(gguf: GgufFile, n: Numbers, family: Family) -> tuple[LayerNumbers, ...]:
    """Every layer's numbers but those of layers that guess further tokens (MTP): see shapes.check_tensors."""
    count = _layer_count(gguf, n)
    recurrences = recurrences_of(gguf, n, family, count)
    experts = n.integer("expert_count", 0, 0)
    used = n.by_layer("expert_used_count", count, [0] * count, 0)
    for each in used:
        if experts and not 1 <= each <= experts:
            raise FormatError(f"cannot use {each} of {experts} experts")
    d_ff = n.by_layer("feed_forward_length", count, [0] * count, 0)
    d_ff_expert = n.by_layer("expert_feed_forward_length", count, d_ff, 0)
    d_ff_shared = n.integer("expert_shared_feed_forward_length", 0, 0)
    found = []
    for layer, attention in enumerate(attention_layers(gguf, n, family, count)):
        numbers = replace(attention, d_ff=d_ff[layer], recurrence=recurrences[layer])
        if experts:
            numbers = replace(
                numbers,
                n_experts=experts,
                n_experts_used=used[layer],
                d_ff_expert=d_ff_expert[layer] or d_ff[layer],
                d_ff_shared=d_ff_shared,
            )
        if family.latent_attention:
            numbers = latent_layer(n, numbers)
        found.append(numbers)
    return tuple(found)


def _layer_count(gguf: GgufFile, n: Numbers) -> int:
    blocks, further = n.integer("block_count"), n.integer("nextn_predict_layers", 0, 0)
    name = f"{gguf.architecture}.block_count"
    if f"blk.{blocks}.attn_norm.weight" in gguf.tensors:  # a model cut short would talk nonsense, not fail
        raise FormatError(f"{name} is {blocks}, but the file holds tensors of layer {blocks} (blk.{blocks}...)")
    if further >= blocks:
        raise FormatError(f"{gguf.architecture}.nextn_predict_layers is {further} of {blocks} layers: none is left")
    return blocks - further


def _activation(n: Numbers, family: Family, sparse: bool) -> Activation:
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


def _router(n: Numbers, family: Family) -> RouterKind:
    """llama.cpp's expert_gating_func, where the file says one."""
    kinds: dict[int, RouterKind] = {0: family.router, 1: "softmax", 2: "sigmoid", 3: "softmax_topk"}
    said = n.integer("expert_gating_func", 0, 0)
    if said not in kinds:
        raise UnsupportedError(f"the gating function {said} of its experts is not supported")
    return kinds[said]
