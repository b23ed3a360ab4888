"""How fast a model will run with a memory plan on a machine of these rates.

tokens/s <= min(1 / compute time, disk rate / bytes missing a token). Reading ahead turns the sum of the two times into
their maximum, but only layer by layer: guesses reach a layer or two ahead, so a layer that misses three experts waits
for the disk, though the disk is idle for the next ones, which miss none. So the maximum is taken for every number of
misses that a layer can have, weighted by how likely it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Protocol

import numpy as np

from edgerun.formats.gguf import TensorInfo
from edgerun.models import ModelSpec
from edgerun.models.blocks.neurons import FIRING
from edgerun.models.plan import plan_of
from edgerun.planning.memory import MemoryPlan, Sizes
from edgerun.planning.rates import Rates, product_name
from edgerun.planning.slow_types import Types
from edgerun.weights.catalog import Catalog

_PROMPT_TOKENS = 256
# Of the shorter of computing and reading, what the longer does not hide: what comes last is yet to be computed
_VISIBLE = 0.2
_PROMPT_VISIBLE = 0.6  # where a layer's experts are all read while it computes, and packing them takes its cores
_PACKING = 0.2  # of the products' bytes/s: what is read is packed by the same cores
_EXPERT_LAYER_S, _STREAMED_LAYER_S = 0.0002, 0.0003  # a token: choosing experts, and keeping the cache besides
_DECODE_SHARE, _PROMPT_SHARE = 0.88, 0.8  # of the bare products' rates that whole models reach

# Hits of decayed frequency against the share of experts that are cached, on recorded routing after a third of the
# trace: OLMoE-1B-7B (64 experts) and Qwen3-30B-A3B (128, whose short trace hides what is beyond 97 %).
_CACHED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.44, 0.57, 0.7, 0.85, 1.0)
_HITS_FEW = (0.0, 0.2, 0.315, 0.475, 0.6, 0.745, 0.855, 0.935, 0.985, 1.0)
_HITS_MANY = (0.0, 0.41, 0.61, 0.83, 0.94, 0.97, 0.975, 0.98, 0.99, 1.0)
_MANY_EXPERTS = 96

_NEURON_COST = 2.0  # what reading a neuron costs, in bytes read at once


class TypeSizes(Sizes, Types, Protocol):
    """Of the kernels (`kernels.load_sizes`)."""


@dataclass(frozen=True)
class Speed:
    """Predictions. `first_token_s`: of a prompt of `prompt_tokens`, nothing cached."""

    decode_tok_s: float
    prompt_tok_s: float
    first_token_s: float
    prompt_tokens: int
    hit_rate: float
    read_bytes_per_token: float
    compute_s_per_token: float
    read_s_per_token: float


def predict_speed(
    catalog: Catalog,
    spec: ModelSpec,
    plan: MemoryPlan,
    sizes: TypeSizes,
    rates: Rates,
    *,
    hit_rate: float | None = None,
) -> Speed:
    """`hit_rate`: of the expert cache where it was measured; None: what such a cache has with other models. `rates`
    must have all products of the catalog."""
    compute = prompt_compute = 0.0  # seconds a token

    def add(info: TensorInfo, rows: int, times: float = 1.0, touched: float = 1.0, last: bool = False) -> None:
        """A matrix of so many rows that each token is multiplied with `times` times (so many experts, or such a part
        of the neurons); of `touched` such matrices some token of a prompt needs each. last: its last token alone."""
        nonlocal compute, prompt_compute
        cols = info.shape[-1]
        rate = rates.products[product_name(info.type, cols, sizes)]
        one = sizes.packed_bytes(info.type, rows, cols) / rate.decode_bytes_per_s
        many = 2.0 * rows * cols / rate.prompt_ops_per_s
        if sizes.has_kernels(info.type):
            one, many = one / _DECODE_SHARE, times * many / _PROMPT_SHARE
        else:  # numpy makes floats of the whole matrix first, for one token or for many
            unpacking = one / _PROMPT_TOKENS
            many = touched * unpacking + times * max(0.0, many - unpacking)
        compute += times * one
        prompt_compute += one / _PROMPT_TOKENS if last else many

    add(catalog.head, catalog.head.shape[0], last=True)  # the others' logits are not asked for
    for info in catalog.outer_matrices[1:]:
        add(info, info.shape[0])
    stored_dense = stored_neurons = token_experts = prompt_experts = 0.0
    for layer, planned in zip(catalog.layers, plan_of(spec), strict=True):
        for info in layer.matrices.values():
            add(info, info.shape[0])
            stored_dense += info.n_bytes
        for part, info in layer.neurons.items():
            add(info, info.shape[0], planned.tensors[part].times)
            stored_neurons += info.n_bytes
        for part, info in layer.experts.items():
            times, experts = planned.tensors[part].times, info.shape[0]
            touched = experts * (1 - (1 - times / experts) ** _PROMPT_TOKENS)
            add(info, info.shape[1], times, touched)
            token_experts += info.n_bytes * times / experts
            prompt_experts += info.n_bytes * touched / experts
        if planned.mixture is not None:
            compute += _EXPERT_LAYER_S + (_STREAMED_LAYER_S if plan.mode == "experts" else 0)
    hits, missing, prompt_missing = 1.0, 0.0, 0.0
    if plan.mode == "experts":
        curve = _HITS_MANY if spec.n_experts >= _MANY_EXPERTS else _HITS_FEW
        hits = float(np.interp(plan.cached_share, _CACHED, curve)) if hit_rate is None else hit_rate
        missing = (1 - hits) * token_experts
        prompt_missing = prompt_experts
    elif plan.mode == "layers":
        hits = plan.cached_share
        missing = prompt_missing = (1 - hits) * stored_dense
        if plan.all_neurons:
            kept = plan.neuron_slots / plan.all_neurons
            missing += FIRING * _NEURON_COST * stored_neurons * (1 - kept) ** 2  # hot ones are kept
            prompt_missing += stored_neurons * (1 - kept)
    compute += missing / (_PACKING * _fastest(rates))
    read = missing / rates.disk_bytes_per_s
    prompt_read = prompt_missing / rates.disk_bytes_per_s
    used = spec.n_experts_used if plan.mode == "experts" else 0
    first = _overlapped(_PROMPT_TOKENS * prompt_compute, prompt_read, _PROMPT_VISIBLE)
    return Speed(
        decode_tok_s=1 / token_s(compute, read, hits, spec.n_layers, used),
        prompt_tok_s=_PROMPT_TOKENS / first,
        first_token_s=first,
        prompt_tokens=_PROMPT_TOKENS,
        hit_rate=hits,
        read_bytes_per_token=missing,
        compute_s_per_token=compute,
        read_s_per_token=read,
    )


def _fastest(rates: Rates) -> float:
    """Bytes/s of the type whose products are fastest: the others' packing is bound by memory too."""
    return max(each.decode_bytes_per_s for each in rates.products.values())


def token_s(compute_s: float, read_s: float, hit_rate: float, layers: int, used: int) -> float:
    """Seconds a token when computing it takes `compute_s` and reading what is missing `read_s`, on average.

    used: experts of a layer, each there with a chance of `hit_rate`; 0: the same is read for every token, in order.
    """
    if not used or hit_rate >= 1:
        return _overlapped(compute_s, read_s, _VISIBLE)
    layer_s, miss = compute_s / layers, 1 - hit_rate
    expert_s = read_s / (layers * used * miss)
    chances = [comb(used, count) * miss**count * hit_rate ** (used - count) for count in range(used + 1)]
    return layers * sum(
        chance * _overlapped(layer_s, count * expert_s, _VISIBLE) for count, chance in enumerate(chances)
    )


def _overlapped(a: float, b: float, visible: float) -> float:
    """Seconds of two things at the same time, of the shorter of which a share stays visible."""
    return max(a, b) + visible * min(a, b)
