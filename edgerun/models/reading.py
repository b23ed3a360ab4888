"""A model's numbers are read from GGUF metadata, and checked before anything is allocated from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

from edgerun.errors import FormatError, UnsupportedError
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import Activation
from edgerun.kernels.routing import RouterKind
from edgerun.models.attention_numbers import attention_layers
from edgerun.models.families import CHOICES, FAMILIES, Family
from edgerun.models.latent import latent_layer
from edgerun.models.numbers import Numbers
from edgerun.models.recurrences import recurrences_of
from edgerun.models.rotations import turned_by_sections
from edgerun.models.spec import LayerNumbers, ModelSpec
from edgerun.models.unknown import unknown_architecture

_USUALLY_SILENT = 0.95  # of gates that let only some through


def read_spec(gguf: GgufFile) -> ModelSpec:
    """Read the numbers, some of which follow from which tensors there are, and of what shape. Raises UnsupportedError
    for unknown architectures, FormatError for impossible values."""
    architecture = gguf.architecture
    if architecture not in FAMILIES:
        raise unknown_architecture(gguf)
    family = FAMILIES[architecture]
    n = Numbers(gguf.metadata, architecture, CHOICES - family.says)
    family = turned_by_sections(n, family)
    vocab_size, sparse = _vocab_size(gguf), "blk.0.ffn_down_t.weight" in gguf.tensors
    layers = _layers(gguf, n, family, _fused(gguf))
    if family.early_router and not layers[0].n_experts:
        raise FormatError(f"a {architecture} is a mixture of experts; the file lacks {architecture}.expert_count")
    eps = _norm_eps(n, family)
    experts = any(layer.n_experts for layer in layers)
    if sparse and (experts or family.fused_gate_up or family.sub_norms or family.post_norms):
        raise UnsupportedError(f"a {architecture} with ffn_down_t is not supported: only plain gated feed-forwards are")
    groups, groups_used = _groups(n, layers)
    return ModelSpec(
        architecture=architecture,
        family=family,
        layers=layers,
        d_model=n.integer("embedding_length"),
        vocab_size=vocab_size,
        context_length=n.integer("context_length", 4096),
        norm_eps=eps,
        expert_scale=n.real("expert_weights_scale", 1.0) or 1.0,
        renormalise=n.truth("expert_weights_norm", family.renormalise),
        expert_groups=groups,
        expert_groups_used=groups_used,
        expert_latent=n.integer("moe_latent_size", 0, 0),
        embedding_scale=_embedding_scale(n, family),
        residual_scale=_residual_scale(n, family, len(layers)),
        logit_scale=_logit_scale(n, family),
        per_layer_width=_per_layer_width(n, family),
        streams=_streams(n, family),
        score_scale=family.score_scale or n.real("attention.scale", 0.0),
        attention_softcap=n.real("attn_logit_softcapping", family.softcaps[0]),
        logit_softcap=n.real("final_logit_softcapping", family.softcaps[1]),
        activation=_activation(n, family, sparse),
        router=_router(n, family, vocab_size),
        sparse=sparse,
    )


def _norm_eps(n: Numbers, family: Family) -> float:
    """What is added to a variance; Nemotron-H's files may say it under the other norm's name."""
    layer, rms = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
    eps = n.real(layer, 1e-5) if family.norm == "layer" else n.real(rms, 0.0)
    if not eps:
        eps = n.real(layer, 1e-5) if family.single_blocks else 1e-5
    if not 0.0 < eps < 1.0:
        raise FormatError(f"impossible numbers: norm epsilon {eps}")
    return eps


def _vocab_size(gguf: GgufFile) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError("the file has no matrix token_embd.weight: it holds no model")
    return embedding.shape[0]


def _fused(gguf: GgufFile) -> frozenset[str]:
    """Parts of layers that hold gate and up: by name, or because there is no gate and twice as many rows."""
    parts = {name.split(".", 2)[2]: info for name, info in gguf.tensors.items() if name.count(".") >= 3}
    found = {"ffn_gate_up_exps"} if "ffn_gate_up_exps.weight" in parts else set()
    for end in ("", "_shexp"):
        up, down = parts.get(f"ffn_up{end}.weight"), parts.get(f"ffn_down{end}.weight")
        if up and down and f"ffn_gate{end}.weight" not in parts and up.shape[0] == 2 * down.shape[-1]:
            found.add(f"ffn_up{end}")
    return frozenset(found)


def _layers(gguf: GgufFile, n: Numbers, family: Family, fused: frozenset[str]) -> tuple[LayerNumbers, ...]:
    """Every layer's numbers but those of layers that guess further tokens (MTP): see shapes.check_tensors."""
    count = _layer_count(gguf, n)
    if family.of_layers not in (0, count):
        only = f"{family.of_layers} layers, not of {count}"
        raise UnsupportedError(f"of {gguf.architecture} edgerun runs models of {only}")
    recurrences = recurrences_of(gguf, n, family, count)
    experts = n.integer("expert_count", 0, 0)
    experts = 0 if experts <= family.no_mixture_up_to else experts
    used = n.by_layer("expert_used_count", count, [0] * count, 0)
    for each in used:
        if experts and not 1 <= each <= experts:
            raise FormatError(f"cannot use {each} of {experts} experts")
    d_ff = n.by_layer("feed_forward_length", count, [0] * count, 0)
    d_ff_expert = n.by_layer("expert_feed_forward_length", count, d_ff, 0) if family.expert_length else d_ff
    mixtures = _mixtures(n, count) if experts else [False] * count
    if family.single_blocks:
        mixtures = [each and d_ff[layer] > 0 for layer, each in enumerate(mixtures)]
    deviations = _gate_deviations(n, family, count)
    found = []
    for layer, attention in enumerate(attention_layers(gguf, n, family, count)):
        numbers = replace(
            attention,
            d_ff=d_ff[layer],
            fused_gate_up="ffn_up" in fused
            or (family.fused_gate_up and f"blk.{layer}.ffn_gate.weight" not in gguf.tensors),
            recurrence=recurrences[layer],
            gate_deviations=deviations[layer],
        )
        if family.single_blocks and d_ff[layer]:
            numbers = replace(numbers, n_heads=0, n_kv_heads=0, recurrence=None)
        if mixtures[layer] and family.dense_beside and not d_ff[layer]:
            raise FormatError(
                f"{n.name('feed_forward_length')} is 0 of layer {layer}, which has one beside its experts"
            )
        if mixtures[layer]:
            numbers = replace(
                numbers,
                n_experts=experts,
                n_experts_used=used[layer],
                d_ff_expert=d_ff_expert[layer] or d_ff[layer],
                d_ff_shared=_shared_width(n, family, d_ff_expert[layer] or d_ff[layer]),
                dense_beside=family.dense_beside,
                fused_experts="ffn_gate_up_exps" in fused,
                fused_shared="ffn_up_shexp" in fused,
            )
        if family.latent_attention:
            numbers = latent_layer(gguf, n, family, numbers, layer)
        found.append(numbers)
    return tuple(found)


def _layer_count(gguf: GgufFile, n: Numbers) -> int:
    blocks, further = n.integer("block_count"), n.integer("nextn_predict_layers", 0, 0)
    name = f"{gguf.architecture}.block_count"
    if any(
        each.startswith(f"blk.{blocks}.") for each in gguf.tensors
    ):  # a model cut short would talk nonsense, not fail
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


def _router(n: Numbers, family: Family, vocab_size: int) -> RouterKind:
    """llama.cpp's expert_gating_func, where the file says one."""
    is_sigmoid = (n.integer("block_count"), vocab_size) in family.sigmoid_sizes
    kinds: dict[int, RouterKind] = {
        0: "sigmoid" if is_sigmoid else family.router,
        1: "softmax",
        2: "sigmoid",
        3: "softmax_topk",
        4: "sqrt_softplus",
    }
    said = n.integer("expert_gating_func", 0, 0)
    if said not in kinds:
        raise UnsupportedError(f"the gating function {said} of its experts is not supported")
    return kinds[said]


def _mixtures(n: Numbers, layers: int) -> list[bool]:
    """Which layers have experts: after the leading dense ones, of every so many the last."""
    first, step = n.integer("leading_dense_block_count", 0, 0), n.integer("interleave_moe_layer_step", 1, 0) or 1
    return [layer >= first and (layer + 1) % step == 0 for layer in range(layers)]


def _shared_width(n: Numbers, family: Family, d_ff_expert: int) -> int:
    """Of the experts that every token uses, which lie together as one."""
    count = n.integer("expert_shared_count", family.least_shared, 0)
    said = n.integer("expert_shared_feed_forward_length", 0, 0)
    return said * count if family.shared_times_count and said else said or count * d_ff_expert


def _groups(n: Numbers, layers: tuple[LayerNumbers, ...]) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may use."""
    groups, used = n.integer("expert_group_count", 1, 0) or 1, n.integer("expert_group_used_count", 1, 0) or 1
    experts = max(layer.n_experts for layer in layers)
    if groups == 1 or not experts:
        return 1, 1
    most = max(layer.n_experts_used for layer in layers)
    if experts % groups or experts // groups < 2 or used > groups or most > used * (experts // groups):
        raise FormatError(f"cannot use {most} experts of {used} of {groups} groups of {experts}")
    return groups, used


def _embedding_scale(n: Numbers, family: Family) -> float:
    if family.scaled_embedding:
        return float(n.integer("embedding_length") ** 0.5)
    return n.real("embedding_scale", family.default_multipliers[0]) or 1.0 if family.multipliers else 1.0


def _residual_scale(n: Numbers, family: Family, layers: int) -> float:
    usual = family.default_multipliers[1]
    return n.real("residual_scale", 1.0 if usual == 1.0 else usual / layers**0.5) or 1.0 if family.multipliers else 1.0


def _logit_scale(n: Numbers, family: Family) -> float:
    if family.logits == "plain":
        return 1.0
    usual = family.default_multipliers[2]
    scale = n.real("logit_scale", usual / n.integer("embedding_length") if usual else 1.0) or 1.0
    return scale if family.logits == "times" else 1.0 / scale


def _per_layer_width(n: Numbers, family: Family) -> int:
    key = "embedding_length_per_layer_input"
    return n.integer(key, family.per_layer_width, 0) if family.per_layer_inputs else 0


def _streams(n: Numbers, family: Family) -> int:
    """That the residual is. UnsupportedError where layers compute with another than the first."""
    if family.streams == 1:
        return 1
    if n.integer("altup.active_idx", 0, 0):
        raise UnsupportedError(f"{n.name('altup.active_idx')} is not 0: layers compute with another stream")
    if not _per_layer_width(n, family):
        raise FormatError(f"{n.name('embedding_length_per_layer_input')} is 0, but its layers are fed some")
    return n.integer("altup.num_inputs", family.streams, 2)


def _gate_deviations(n: Numbers, family: Family, layers: int) -> list[float]:
    """Of every layer's gates, which let the share of the largest through that a normal distribution has so many
    deviations above its mean, as converters write it: minus infinity, where all are let through."""
    if not family.sparse_gates:
        return [0.0] * layers
    from statistics import NormalDist  # for few models, and it loads decimals and fractions

    usual = NormalDist().inv_cdf(_USUALLY_SILENT)
    said = [usual if layer < family.sparse_gates else -math.inf for layer in range(layers)]
    said = n.reals("activation_sparsity_scale", layers, said)
    if any(math.isnan(each) or each > 100.0 for each in said):
        raise FormatError(f"{n.name('activation_sparsity_scale')} must be deviations, got {said}")
    return [each if math.isfinite(each) else 0.0 for each in said]
