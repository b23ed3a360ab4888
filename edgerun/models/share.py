"""What one rank of a group has of a model: of every layer some heads, some columns of its feed-forward, some experts,
and some rows of the vocabulary. A shard's spec is the model's with the numbers of such a share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from edgerun.errors import UnsupportedError
from edgerun.models.plan import plan_of
from edgerun.models.spec import LayerNumbers, LayerUnits, ModelSpec, Shard, Units

_WHOLE = ("_exps.bias", "_exps.scale", "ffn_gate_inp.bias", "output.bias", "output.scale")


@dataclass(frozen=True)
class LayerShare:
    """Ranges of a layer: `heads` of the queries, columns `ff` of the feed-forward (of every expert, where there are
    some), whole `experts`, columns `shared` of the shared expert. Any of them may be empty."""

    heads: range
    ff: range
    experts: range = range(0)
    shared: range = range(0)


@dataclass(frozen=True)
class Share:
    """One rank's part of every layer and of the vocabulary. text: whether the rank has the embedding. units: into how
    many units the columns of each layer's mixer and feed-forward are cut, of which a rank has whole ones; none: sums
    are not made of units."""

    layers: tuple[LayerShare, ...]
    vocabulary: range
    text: bool
    units: tuple[tuple[int, int], ...] = ()


def kv_heads_of(numbers: LayerNumbers, heads: range) -> list[int]:
    """The heads of keys and values that a share's queries look at, in the order that the shard holds them: as many
    queries in a row for each, so that one that fewer queries share may stand there twice."""
    group = numbers.n_heads // max(1, numbers.n_kv_heads)
    seen = [head // group for head in heads]
    counts = [seen.count(each) for each in dict.fromkeys(seen)]
    return seen[:: gcd(*counts)] if counts else []


def units_of(numbers: LayerNumbers, share: LayerShare, counts: tuple[int, int]) -> LayerUnits:
    """The units that a share has of a layer (`numbers`: the whole layer's) of so many in the mixer and in the
    feed-forward. UnsupportedError where it has no whole ones, or not the same of the shared expert as of the others."""
    mixer, feed_forward = counts
    heads = _units(numbers.n_heads, share.heads, mixer)
    columns = _units(numbers.d_ff_expert if numbers.n_experts else numbers.d_ff, share.ff, feed_forward)
    same = not numbers.d_ff_shared or _units(numbers.d_ff_shared, share.shared, feed_forward) == columns
    if not same or (columns.held and numbers.n_experts and len(share.experts) != numbers.n_experts):
        raise UnsupportedError("a share of experts that is not the same of all of them cannot be summed in units")
    return LayerUnits(heads, columns)


def _units(size: int, held: range, count: int) -> Units:
    if count < 1 or size % count or held.start % (size // count) or len(held) % (size // count):
        raise UnsupportedError(f"{held.start} to {held.stop} of {size} are no whole ones of {count} units")
    unit = size // count
    return Units(count, range(held.start // unit, held.stop // unit))


def why_whole(spec: ModelSpec) -> str:
    """Why a model cannot be divided among devices yet: what it has that is not divided; "" where it can be."""
    family, layers, plans = spec.family, spec.layers, plan_of(spec)
    has = {
        "recurrent states": any(layer.recurrence is not None for layer in layers),
        "short convolutions": any(layer.conv_taps for layer in layers),
        "latent attention": any(layer.latent is not None for layer in layers),
        "gated attention": family.output_gate != "none",
        "attention sinks": family.sinks,
        "keys that several layers share": any(layer.kv_source is not None for layer in layers),
        "values that are its keys": any(layer.v_from_k for layer in layers),
        "a narrow way around attention": bool(family.laurel_rank),
        "layers without attention": family.single_blocks or not all(layer.n_heads for layer in layers),
        "several residual streams": spec.streams > 1,
        "inputs of each layer": any(plan.closing for plan in plans),
        "attention and feed-forward side by side": family.parallel,
        "a dense feed-forward beside experts": family.dense_beside,
        "experts whose inputs are weighted": family.weighted_inputs,
        "experts of another width": bool(spec.expert_latent),
        "gates and ups in one tensor": any(
            (layer.fused_gate_up and not family.fused_gate_up) or layer.fused_shared for layer in layers
        )
        or any(name.endswith("ffn_gate_up_exps.weight") for name in spec.tensors),
        "biases or scales of experts or of its head": any(
            name.endswith(_WHOLE) and not name.endswith("attn_output.bias") for name in spec.tensors
        ),
    }
    found = [what for what, is_so in has.items() if is_so]
    return f"a {spec.architecture} cannot be divided among devices yet: it has {', '.join(found)}" if found else ""


def check_dividable(spec: ModelSpec) -> None:
    """UnsupportedError with the reason for a model that cannot be divided yet."""
    why = why_whole(spec)
    if why:
        raise UnsupportedError(why)


def spec_of_share(spec: ModelSpec, share: Share) -> ModelSpec:
    """The numbers of a shard of the model `spec`: what its rank computes. UnsupportedError for one that cannot be
    divided yet."""
    check_dividable(spec)
    layers = []
    for whole, mine in zip(spec.layers, share.layers, strict=True):
        layers.append(
            replace(
                whole,
                n_heads=len(mine.heads),
                n_kv_heads=len(kv_heads_of(whole, mine.heads)),
                d_ff=0 if whole.n_experts else len(mine.ff),
                d_ff_expert=len(mine.ff) if whole.n_experts else 0,
                d_ff_shared=len(mine.shared),
            )
        )
    experts = tuple(each.experts for each in share.layers)
    units = (
        tuple(units_of(*each) for each in zip(spec.layers, share.layers, share.units, strict=True))
        if share.units
        else ()
    )
    return replace(
        spec,
        layers=tuple(layers),
        shard=Shard(spec.layers, experts, len(share.vocabulary), share.text, units),
        tensors={},
        unused=(),
    )
