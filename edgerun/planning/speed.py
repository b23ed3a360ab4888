"""How fast a model will run with a memory plan on a machine of these rates.

tokens/s <= min(1 / compute time, disk rate / bytes missing a token). Reading ahead turns the sum of the two times into
their maximum, but only some layers at a time: guesses reach two or four layers ahead, so where many experts are missing
in these they are waited for, though the disk is idle for the next ones, which miss none. So the maximum is taken for
every number of misses that so many layers can have, weighted by how likely it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, pow
from typing import Protocol

from edgerun.models import ModelSpec
from edgerun.models.blocks.neurons import FIRING
from edgerun.models.chunks import CHUNK
from edgerun.models.plan import plan_of
from edgerun.planning.costs import Operation, pass_operations
from edgerun.planning.expert_hits import ALIKE, full_hits
from edgerun.planning.memory import MemoryPlan, Sizes
from edgerun.planning.rates import MEASURED_COLS, MEASURED_TOKENS, Rates, product_name
from edgerun.planning.slow_types import Types
from edgerun.weights.catalog import Catalog

_PROMPT_TOKENS = 256
# Of the shorter of computing and reading, what the longer does not hide: what comes last is yet to be computed
_VISIBLE = 0.2
_PROMPT_VISIBLE = 0.6  # where a layer's experts are all read while it computes, and packing them takes its cores
# A reader's own work on what it has read (asking, packing it where it belongs) beside products, of their bytes/s; how
# many readers there are: while one packs, the disk has fewer to read for. Of the seconds that packing takes a core,
# those by which it makes computing longer, whose threads wait for each other
_PACKING, _READERS, _PACKING_BESIDE = 0.048, 3, 0.5
# Of the bare products' rates that they reach within whole models, decoding and for prompts
_SHARES = 1.0, 0.95
# A row of weights is unpacked once for all tokens, and a result scaled and stored once for all columns: each as much as
# so many more of them
_TOKENS_MORE, _COLS_MORE = 10.0, 120.0
_ALONE_SHARES = 0.88, 0.8  # with attention and all the rest, where attention's rate was not measured
# Of norms, rotations, gates, additions, rounding to 8 bits: bytes read at once for each row and number of d; of a row's
# copies for its experts
_REST_BYTES, _COPY_REST = 380.0, 0.27
# A layer's launches, and what one of them takes, replayed and within a prompt, of one that is timed alone: replayed,
# Python is not asked in between, but threads wait for each other
_LAUNCHES, _REPLAYED_LAUNCH, _PROMPT_LAUNCH = 16, 0.35, 1.0
# A token's choosing of experts, layer by layer, and keeping the cache besides: in Python, so in launches too
_EXPERT_LAUNCHES, _STREAMED_LAUNCHES = 60, 60
# Attention of one row by its bytes and by its operations, of a rate in bytes that was measured with four operations a
# byte, and keys and values that were in a cache; of a prompt's first rows, which see little beside what is masked
_ATTENDED_BYTES, _ATTENDED_OPS, _PROMPT_ATTENTION = 0.74, 0.21, 0.77

_KEPT_IN_WAVE = 0.65  # of a cache, while a prompt's activations borrow the rest
_NEURON_COST = 2.0  # what reading a neuron costs, in bytes read at once


class TypeSizes(Sizes, Types, Protocol):
    """Of the kernels (`kernels.load_sizes`)."""


@dataclass(frozen=True)
class Speed:
    """Predictions. `first_token_s`: of a prompt of `prompt_tokens`."""

    decode_tok_s: float
    prompt_tok_s: float
    first_token_s: float
    prompt_tokens: int
    hit_rate: float
    read_bytes_per_token: float
    compute_s_per_token: float
    read_s_per_token: float
    # Of a reader: for experts that do not come from a pack file, and for memory that the system has yet to give
    pack_s_per_token: float = 0.0
    memory_bytes_per_token: float = 0.0  # weights, keys and values that a token reads from memory


def predict_speed(
    catalog: Catalog,
    spec: ModelSpec,
    plan: MemoryPlan,
    sizes: TypeSizes,
    rates: Rates,
    *,
    hit_rate: float | None = None,
    new_rate: float = 0.0,
    prompt_tokens: int = _PROMPT_TOKENS,
    position: int | None = None,
    packed: bool = False,
    warm: bool = False,
) -> Speed:
    """Of a prompt of so many tokens, and of a token that stands after `position` others (None: after the prompt).
    `hit_rate`: of the expert cache where it is known; None: what such a cache, full, has with other models. new_rate:
    uses that miss and are read to memory that was not used before. `rates` must have all products of the catalog.
    packed: what is missing comes from a pack file. warm: the cache was filled before, by others like the prompt."""
    position = prompt_tokens if position is None else position
    rates = rates.for_weights(_token_weight_bytes(catalog, spec, sizes))
    token = list(pass_operations(catalog, spec, sizes, rows=1, position=position))
    compute = sum(operation_s(each, 1, rates, sizes) for each in token) + rest_s(spec, 1, rates)
    prompt_compute = 0.0
    for low in range(0, prompt_tokens, CHUNK):
        rows, last = min(CHUNK, prompt_tokens - low), low + CHUNK >= prompt_tokens
        chunk = pass_operations(catalog, spec, sizes, rows=rows, position=low, logits_rows=int(last))
        prompt_compute += sum(operation_s(each, rows, rates, sizes) for each in chunk if each.flops)
        prompt_compute += rest_s(spec, rows, rates)
    stored = stored_bytes(catalog, spec)
    mixtures = [planned.mixture for planned in plan_of(spec) if planned.mixture is not None]
    choosing = _EXPERT_LAUNCHES + (_STREAMED_LAUNCHES if plan.mode == "experts" else 0)
    compute += len(mixtures) * choosing * rates.launch_s
    hits, missing, prompt_missing = 1.0, 0.0, 0.0
    wave = min(plan.wave_tokens or prompt_tokens, prompt_tokens)
    waves = -(-prompt_tokens // max(1, wave))
    if plan.mode == "experts":
        hits = full_hits(spec, plan.cached_share) if hit_rate is None else hit_rate
        missing = (1 - hits) * stored.token_experts
        kept = _KEPT_IN_WAVE * plan.cached_share
        prompt_missing = (waves * (1 - kept) + (0.0 if warm else kept)) * stored.touched_experts(wave)
    elif plan.mode == "layers":
        hits = plan.cached_share
        missing = (1 - hits) * stored.dense
        prompt_missing = waves * missing
        if plan.all_neurons:
            kept = plan.neuron_slots / plan.all_neurons
            missing += FIRING * _NEURON_COST * stored.neurons * (1 - kept) ** 2  # hot ones are kept
            prompt_missing += waves * stored.neurons * (1 - kept)
    alone = packed or plan.mode == "experts"  # layers are read without a pause, and readers are at work all the time
    read = missing / (rates.disk_bytes_per_s if alone else _read_bytes_per_s(rates))
    pack = 0.0 if packed or plan.mode != "experts" else missing / _pack_bytes_per_s(rates)
    if plan.mode == "experts" and rates.new_memory_bytes_per_s is not None:
        pack += new_rate * stored.token_experts / rates.new_memory_bytes_per_s
    prompt_read = prompt_missing / rates.disk_bytes_per_s
    used = spec.n_experts_used if plan.mode == "experts" else 0
    first = _overlapped(prompt_compute, prompt_read, _VISIBLE if packed else _PROMPT_VISIBLE)
    return Speed(
        decode_tok_s=1 / token_s(compute, read, hits, spec.n_layers, used, layers_ahead(spec), pack_s=pack),
        prompt_tok_s=prompt_tokens / first,
        first_token_s=first,
        prompt_tokens=prompt_tokens,
        hit_rate=hits,
        read_bytes_per_token=missing,
        compute_s_per_token=compute,
        read_s_per_token=read,
        pack_s_per_token=pack,
        memory_bytes_per_token=sum(each.memory_bytes for each in token),
    )


def operation_s(operation: Operation, rows: int, rates: Rates, sizes: Types) -> float:
    """Seconds that an operation of a pass of so many rows takes, as a part of a model."""
    if operation.kind == "attention":
        known = rates.attention
        if known is None:
            return 0.0
        if rows == 1:
            worth = _ATTENDED_BYTES * operation.memory_bytes + _ATTENDED_OPS * operation.flops
            return worth / known.decode_bytes_per_s
        return operation.flops / (_PROMPT_ATTENTION * known.prompt_ops_per_s)
    assert operation.type is not None  # products have one
    rate = rates.products[product_name(operation.type, operation.cols, sizes)]
    one, many = operation.memory_bytes / rate.decode_bytes_per_s, operation.flops / rate.prompt_ops_per_s
    decode_share, prompt_share = _ALONE_SHARES if rates.attention is None else _SHARES
    if sizes.has_kernels(operation.type):
        if rows == 1 or operation.layer is None:
            return one / decode_share
        each = rows * operation.times / operation.touched
        return max(one, many * _shape_cost(operation.cols, each)) / prompt_share
    if rows == 1:
        return one
    # numpy makes floats of the whole matrix first, for one token or for many; its rate with 256 rows counts that too
    return one + max(0.0, many - operation.times / operation.touched * one * rows / _PROMPT_TOKENS)


def _shape_cost(cols: int, rows: float) -> float:
    """Of a product of so many columns and tokens, by that of the shape that was measured."""
    measured = (1 + _COLS_MORE / MEASURED_COLS) * (1 + _TOKENS_MORE / MEASURED_TOKENS)
    return (1 + _COLS_MORE / cols) * (1 + _TOKENS_MORE / rows) / measured


def rest_s(spec: ModelSpec, rows: int, rates: Rates) -> float:
    """Seconds of what a pass does beside products and attention, where attention's rate is known (else products' shares
    count it)."""
    if rates.attention is None:
        return 0.0
    launches_s = spec.n_layers * _LAUNCHES * rates.launch_s
    if rows == 1:
        return launches_s * _REPLAYED_LAUNCH
    copies = sum(each.n_experts_used for each in spec.layers)  # one for each expert
    row_s = spec.d_model * _REST_BYTES / _fastest(rates)
    return launches_s * _PROMPT_LAUNCH + rows * (spec.n_layers + _COPY_REST * copies) * row_s


def _token_weight_bytes(catalog: Catalog, spec: ModelSpec, sizes: TypeSizes) -> float:
    """Packed, that a token reads."""
    return sum(each.memory_bytes for each in pass_operations(catalog, spec, sizes) if each.kind == "product")


@dataclass(frozen=True)
class StoredBytes:
    """Of a model's file: dense matrices of layers, neurons, and experts by (bytes of all, experts, used of them)."""

    dense: float
    neurons: float
    experts: tuple[tuple[float, int, float], ...]

    @property
    def token_experts(self) -> float:
        """That one token needs."""
        return self.touched_experts(1)

    def touched_experts(self, rows: int) -> float:
        """That some of so many tokens needs each."""
        return sum(n_bytes * (1 - pow(1 - times / count, pow(rows, ALIKE))) for n_bytes, count, times in self.experts)


def stored_bytes(catalog: Catalog, spec: ModelSpec) -> StoredBytes:
    """What there is to be read of a model's layers."""
    experts = [
        (float(info.n_bytes), int(info.shape[0]), float(planned.tensors[part].times))
        for layer, planned in zip(catalog.layers, plan_of(spec), strict=True)
        for part, info in layer.experts.items()
    ]
    dense = sum(info.n_bytes for layer in catalog.layers for info in layer.matrices.values())
    neurons = sum(info.n_bytes for layer in catalog.layers for info in layer.neurons.values())
    return StoredBytes(dense, neurons, tuple(experts))


def _fastest(rates: Rates) -> float:
    """Bytes/s of the type whose products are fastest, out of a cache where that is known: how fast cores are with
    vectors that are just made."""
    return max(each.cached_bytes_per_s or each.decode_bytes_per_s for each in rates.products.values())


def _pack_bytes_per_s(rates: Rates) -> float:
    """Of one reader, beside products."""
    return _PACKING * _fastest(rates)


def _read_bytes_per_s(rates: Rates) -> float:
    """That readers read and pack: they queue at the disk, and pack by themselves (mean value analysis of so many
    customers of one server)."""
    disk_s, pack_s = 1 / rates.disk_bytes_per_s, 1 / _pack_bytes_per_s(rates)
    waiting, rate = 0.0, 0.0  # readers at the disk, bytes/s of all
    for readers in range(1, _READERS + 1):
        there_s = disk_s * (1 + waiting)
        rate = readers / (there_s + pack_s)
        waiting = rate * there_s
    return rate


def layers_ahead(spec: ModelSpec) -> int:
    """How many layers guesses reach; 1 for a model without experts."""
    mixtures = (planned.mixture for planned in plan_of(spec))
    return max((len(each.router.later) for each in mixtures if each is not None), default=0) or 1


def token_s(
    compute_s: float,
    read_s: float,
    hit_rate: float,
    layers: int,
    used: int,
    ahead: int = 1,
    *,
    pack_s: float = 0.0,
) -> float:
    """Seconds a token when computing it takes `compute_s`, reading what is missing `read_s` of the disk and packing it
    `pack_s` of a reader, on average.

    used: experts of a layer, each there with a chance of `hit_rate`; 0: the same is read for every token, in order.
    ahead: layers that guesses reach: reading is even over so many.
    """
    if not used or hit_rate >= 1:
        return _overlapped(compute_s, read_s, _VISIBLE)
    miss = 1 - hit_rate
    missing, asked = layers * used * miss, used * ahead
    disk_s, packing_s = read_s / missing, pack_s / missing  # an expert's
    total_s = 0.0
    for count in range(asked + 1):
        chance = comb(asked, count) * miss**count * hit_rate ** (asked - count)
        computing_s = ahead * compute_s / layers + _PACKING_BESIDE * count * packing_s
        total_s += chance * _overlapped(computing_s, _reading_s(count, disk_s, packing_s), _VISIBLE)
    return (layers / ahead) * total_s


def _reading_s(count: int, disk_s: float, packing_s: float) -> float:
    """Until so many experts are there: the disk gives one after the other, and the last one is yet to be packed; or
    packing takes so long that the disk waits for readers."""
    if not count:
        return 0.0
    return max(count * disk_s + packing_s, -(-count // _READERS) * (disk_s + packing_s))


def _overlapped(a: float, b: float, visible: float) -> float:
    """Seconds of two things at the same time, of the shorter of which a share stays visible."""
    return max(a, b) + visible * min(a, b)
