"""What one rank of a group has of a model: of every layer some heads of its mixer, some columns of its feed-forward,
some experts, and some rows of the vocabulary. A shard's spec is the model's with the numbers of such a share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from edgerun.errors import UnsupportedError
from edgerun.models.spec import LayerNumbers, LayerUnits, ModelSpec, Recurrence, Shard, Units


@dataclass(frozen=True)
class LayerShare:
    """Ranges of a layer: `heads` of the mixer (`mixer_heads`), columns `ff` of the feed-forward (of every expert, where
    there are some), whole `experts`, columns `shared` of what every token passes beside these. Any
    of them may be empty."""

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


def mixer_heads(numbers: LayerNumbers) -> int:
    """What a layer's mixer is dealt out in: heads of queries; of keys, where it keeps recurrent states, each with the
    heads of values that share it; columns of a short convolution. 0: there is no mixer."""
    if numbers.conv_taps:
        return numbers.conv_cols
    return numbers.recurrence.key_heads if numbers.recurrence is not None else numbers.n_heads


def kv_heads_of(numbers: LayerNumbers, heads: range) -> list[int]:
    """The heads of keys and values that a share's queries look at, in the order that the shard holds them: as many
    queries in a row for each, so that one that fewer queries share may stand there twice. Of latent attention the
    one vector of a position, which every share with a query keeps, or each query's own. None where a layer keeps
    nothing of a position."""
    if numbers.conv_taps or numbers.recurrence is not None:
        return []
    if numbers.latent is not None:
        return list(heads) if numbers.latent.expanded else [0] * bool(heads)
    group = numbers.n_heads // max(1, numbers.n_kv_heads)
    seen = [head // group for head in heads]
    counts = [seen.count(each) for each in dict.fromkeys(seen)]
    return seen[:: gcd(*counts)] if counts else []


def value_heads_of(recurrence: Recurrence, heads: range, units: int) -> list[int]:
    """The heads of values that go with these heads of keys, in the order that a shard of so many units holds them:
    those of one unit after those of another, within a unit as in the model."""
    per_unit = len(heads) // max(1, units)
    found = []
    for low in range(heads.start, heads.stop, max(1, per_unit)):
        unit = range(low, low + per_unit)
        if recurrence.turn == 1:
            found += [head * recurrence.group + i for head in unit for i in range(recurrence.group)]
        else:
            found += [i * recurrence.key_heads + head for i in range(recurrence.group) for head in unit]
    return found


def units_of(numbers: LayerNumbers, share: LayerShare, counts: tuple[int, int]) -> LayerUnits:
    """The units that a share has of a layer (`numbers`: the whole layer's) of so many in the mixer and in the
    feed-forward. UnsupportedError where it has no whole ones, or not the same of the shared expert as of the others."""
    mixer, feed_forward = counts
    heads = _units(mixer_heads(numbers), share.heads, mixer)
    columns = _units(numbers.d_ff_expert if numbers.n_experts else numbers.d_ff, share.ff, feed_forward)
    same = not numbers.beside_cols or _units(numbers.beside_cols, share.shared, feed_forward) == columns
    if not same or (columns.held and numbers.n_experts and len(share.experts) != numbers.n_experts):
        raise UnsupportedError("a share of experts that is not the same of all of them cannot be summed in units")
    return LayerUnits(heads, columns)


def _units(size: int, held: range, count: int) -> Units:
    if not size:  # a layer that does not have it
        return Units(count, range(0))
    if count < 1 or size % count or held.start % (size // count) or len(held) % (size // count):
        raise UnsupportedError(f"{held.start} to {held.stop} of {size} are no whole ones of {count} units")
    unit = size // count
    return Units(count, range(held.start // unit, held.stop // unit))


def why_whole(spec: ModelSpec) -> str:
    """Why a model cannot be divided among devices yet: what it has that is not divided; "" where it can be."""
    family, layers = spec.family, spec.layers
    has = {
        "keys that several layers share": any(layer.kv_source is not None for layer in layers),
        "a narrow way around attention": bool(family.laurel_rank),
        "layers without a mixer": not family.single_blocks and not all(mixer_heads(layer) for layer in layers),
        "two mixers side by side": family.mixers_beside,
        "several residual streams": spec.streams > 1,
        "inputs of each layer": bool(spec.per_layer_width),
        "attention and feed-forward side by side": family.parallel,
        "experts whose inputs are weighted": family.weighted_inputs,
        "experts of another width": bool(spec.expert_latent),
        "a bias of its shared expert": any(name.endswith("ffn_down_shexp.bias") for name in spec.tensors),
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
    units = (
        tuple(units_of(*each) for each in zip(spec.layers, share.layers, share.units, strict=True))
        if share.units
        else ()
    )
    layers = []
    for index, (whole, mine) in enumerate(zip(spec.layers, share.layers, strict=True)):
        layers.append(
            replace(
                _with_mixer(whole, mine.heads, len(units[index].mixer.held) if units else 1),
                d_ff=len(mine.shared) if whole.dense_beside else 0 if whole.n_experts else len(mine.ff),
                d_ff_expert=len(mine.ff) if whole.n_experts else 0,
                d_ff_shared=0 if whole.dense_beside else len(mine.shared),
            )
        )
    experts = tuple(each.experts for each in share.layers)
    return replace(
        spec,
        layers=tuple(layers),
        shard=Shard(spec.layers, experts, len(share.vocabulary), share.text, units),
        tensors={},
        unused=(),
    )


def _with_mixer(whole: LayerNumbers, heads: range, units: int) -> LayerNumbers:
    """A layer with these heads of its mixer, in so many units."""
    if whole.conv_taps:
        return replace(whole, conv_cols=len(heads))
    of = whole.recurrence
    if of is None:
        return replace(whole, n_heads=len(heads), n_kv_heads=len(kv_heads_of(whole, heads)))
    turn = 1 if of.turn == 1 else max(1, len(heads) // max(1, units))
    return replace(whole, recurrence=replace(of, heads=len(heads) * of.group, key_heads=len(heads), turn=turn))
