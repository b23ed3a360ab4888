"""Who gets how much of a model: from what devices can do to whole heads, columns and experts. Nothing is random: the
same devices in the same order give the same shares, on every rank.

Every kind of thing is dealt out in grains, which cannot be cut further: KV heads with their queries, columns that a
block of quantised weights holds together. So a rank may get none of something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from math import gcd, lcm

from edgerun.cluster.units import edges_of
from edgerun.errors import UnsupportedError, UsageError
from edgerun.formats.gguf import TensorInfo
from edgerun.models.share import LayerShare, Share, check_dividable, mixer_heads
from edgerun.models.spec import LayerNumbers, ModelSpec
from edgerun.weights.catalog import tensor_name

MOST_RANKS = 64
FOR_MODEL = 0.8  # of a device's free memory; the rest is for the program
UNMEASURED_CORE = 8e9  # bytes of weights a second of a core whose device does not say: a small one
UNMEASURED_DISK = 1e8  # bytes a second of a disk whose device does not say: a card
_COLUMNS = 32  # of a feed-forward at least, where blocks are smaller: less is not worth a launch
_VOCABULARY_ROWS = 16
_UNITS, _MOST_UNITS = 8, 64  # of a sum: the first divides evenly among 2, 4 and 8 devices
_UNEVEN = 1.3  # times its due that a rank may compute before whole experts are dealt out instead of slices


@dataclass(frozen=True)
class Ability:
    """Of a device. rate: what it computes in a second, in any unit that all share; memory_bytes: for weights, keys and
    values; disk_rate: bytes/s that it can read of weights that do not fit."""

    rate: float
    memory_bytes: int
    disk_rate: float = 0.0


def solve(abilities: Sequence[Ability], weights_bytes: int) -> tuple[float, ...]:
    """Each device's part of the weights, 1 together, so that the slowest ends as early as it can: by their rates, but
    nobody gets more than fits. Where all memory together is too little, the rest goes by the rates of disks."""
    if not abilities or any(each.rate < 0 or each.memory_bytes < 0 for each in abilities):
        raise UsageError("a group needs devices, of rates and memories that are not negative")
    most = [each.memory_bytes / weights_bytes for each in abilities]
    part = [0.0] * len(abilities)
    left, open_ = 1.0, [i for i, each in enumerate(abilities) if each.rate > 0]
    while left > 1e-9 and open_:
        total = sum(abilities[i].rate for i in open_)
        due = {i: left * abilities[i].rate / total for i in open_}
        full = [i for i in open_ if part[i] + due[i] >= most[i]]
        for i in full or open_:
            more = most[i] - part[i] if full else due[i]
            part[i] += more
            left -= more
        open_ = [i for i in open_ if i not in full] if full else []
    if left > 1e-9:
        disks = [each.disk_rate for each in abilities]
        disks = disks if sum(disks) > 0 else [each.rate for each in abilities]
        if not sum(disks):
            raise UsageError("no device of the group can compute anything")
        part = [mine + left * disk / sum(disks) for mine, disk in zip(part, disks, strict=True)]
    return tuple(mine / sum(part) for mine in part)


def with_states(spec: ModelSpec, parts: Sequence[float]) -> tuple[float, ...]:
    """`parts`, but that the head, rank 0, has enough to hold some recurrent states, of models that have them: it
    decides which are kept."""
    counts = [mixer_heads(each) for each in spec.layers if _has_states(each)]
    counts = [each for each in counts if each > 1]  # of a single one the head has all
    least = max(1 / _UNITS, 0.5 / min(counts)) if counts else 0.0
    total = sum(parts)
    if parts[0] >= least * total:
        return tuple(parts)
    rest = (1 - least) / (total - parts[0])
    return (least, *(part * rest for part in parts[1:]))


def divide(
    spec: ModelSpec, tensors: Mapping[str, TensorInfo], parts: Sequence[float], *, in_units: bool = False
) -> tuple[Share, ...]:
    """The model's shares by rank, near `parts` of everything. The head, rank 0, has the text. in_units: so that sums
    are the same with any other parts (`units.py`).

    UnsupportedError for a model with layers that cannot be divided, or not in units."""
    if not 1 <= len(parts) <= MOST_RANKS or min(parts) < 0 or sum(parts) <= 0:
        raise UsageError(f"a group has 1 to {MOST_RANKS} ranks, whose parts are not negative; got {list(parts)}")
    check_dividable(spec)
    n = len(parts)
    units: tuple[tuple[int, int], ...] = ()
    if in_units:
        units = unit_counts(spec, tensors)
        layers = [_by_units(each, counts, parts) for each, counts in zip(spec.layers, units, strict=True)]
    else:
        grains = _Grains(spec, tensors, parts)
        layers = [grains.layer(layer) for layer in range(spec.n_layers)]
    if any(_has_states(whole) and not each[0].heads for whole, each in zip(spec.layers, layers, strict=True)):
        raise UnsupportedError(
            "the head of a group decides which recurrent states are kept, and would have none itself"
        )
    rows = _VOCABULARY_ROWS if spec.vocab_size >= _VOCABULARY_ROWS * n else 1
    vocabulary = ranges(spec.vocab_size, rows, parts, least=1)
    return tuple(Share(tuple(each[rank] for each in layers), vocabulary[rank], rank == 0, units) for rank in range(n))


def unit_counts(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> tuple[tuple[int, int], ...]:
    """Into how many units the heads and the columns of the feed-forward of each layer are cut: `_UNITS`, or the next
    number above, or else below, that leaves blocks of weights whole; 0 of what a layer has not. UnsupportedError where
    that cannot be."""
    if spec.sparse:
        raise UnsupportedError(f"{spec.architecture}: sums over single neurons are not made of units")
    found = []
    for layer, numbers in enumerate(spec.layers):

        def block(part: str, layer: int = layer) -> int:
            return tensors[tensor_name(layer, part)].type.block_size

        found.append((_mixer_units(spec, numbers, block), _feed_forward_units(numbers, block)))
    return tuple(found)


def _mixer_units(spec: ModelSpec, numbers: LayerNumbers, block: Callable[[str], int]) -> int:
    """0 where there is no mixer."""
    size = mixer_heads(numbers)
    if not size:
        return 0
    least, group = _together(numbers, block)
    shared_keys = spec.family.qk_norm != "full"  # else a norm over all keys would count some twice
    heads = [
        each
        for each in _divisors(size)
        if each % least == 0 and (each % group == 0 or (shared_keys and group % each == 0))
    ]
    return _unit_count({size // each for each in heads})


def _feed_forward_units(numbers: LayerNumbers, block: Callable[[str], int]) -> int:
    """0 where there is no feed-forward."""
    if not numbers.n_experts and not numbers.d_ff:
        return 0
    cut = [(numbers.d_ff_expert, "ffn_down_exps") if numbers.n_experts else (numbers.d_ff, "ffn_down")]
    cut += [(numbers.beside_cols, _beside_down(numbers))] if numbers.beside_cols else []
    columns = [
        {size // each for each in _divisors(size) if each % _columns(size, block(down)) == 0} for size, down in cut
    ]
    return _unit_count(set.intersection(*columns))


def all_edges(share: Share, parts: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """Where the units of every rank begin, for each count of units that a layer of a share of a model so divided has;
    none where sums are not made of units."""
    counts = sorted({count for layer in share.units for count in layer if count})
    return tuple(edges_of(count, parts) for count in counts)


def _unit_count(possible: set[int]) -> int:
    enough = [count for count in possible if _UNITS <= count <= _MOST_UNITS]
    if enough:
        return min(enough)
    fewer = [count for count in possible if count < _UNITS]
    if not fewer:
        raise UnsupportedError("the blocks of its weights are too wide to be summed in units")
    return max(fewer)


def _by_units(numbers: LayerNumbers, counts: tuple[int, int], parts: Sequence[float]) -> list[LayerShare]:
    """Of every rank whole units of a layer."""
    mixer, feed_forward = (edges_of(max(1, count), parts) for count in counts)

    def dealt(size: int, edges: Sequence[int]) -> list[range]:
        unit = size // edges[-1]
        return [range(low * unit, high * unit) for low, high in pairwise(edges)]

    heads = dealt(mixer_heads(numbers), mixer)
    if not numbers.n_experts:
        return [LayerShare(*each) for each in zip(heads, dealt(numbers.d_ff, feed_forward), strict=True)]
    columns = dealt(numbers.d_ff_expert, feed_forward)
    experts = [range(numbers.n_experts) if each else range(0) for each in columns]
    shared = dealt(numbers.beside_cols, feed_forward) if numbers.beside_cols else [range(0)] * len(parts)
    return [LayerShare(*each) for each in zip(heads, columns, experts, shared, strict=True)]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def ranges(size: int, grain: int, parts: Sequence[float], least: int = 0) -> list[range]:
    """`size` things in whole grains, to each rank as many as are due to it, `least` grains at least; what is left when
    all have their whole grains goes to those who lack most of one, the first among equals. The last grain may be
    larger."""
    count = max(1, size // grain)
    if count < least * len(parts):
        raise UnsupportedError(f"{count} pieces cannot be divided among {len(parts)} devices")
    free = count - least * len(parts)
    due = [free * part / sum(parts) for part in parts]
    given = [int(each + 1e-9) for each in due]
    order = sorted(range(len(parts)), key=lambda rank: (round(given[rank] - due[rank], 9), rank))
    for rank in order[: free - sum(given)]:
        given[rank] += 1
    ends = [0, *accumulate(least + each for each in given)]
    edges = [size if end == count else end * grain for end in ends]
    return [range(low, high) for low, high in pairwise(edges)]


class _Grains:
    """How a model's layers may be cut among ranks of these parts."""

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo], parts: Sequence[float]) -> None:
        self._spec = spec
        self._tensors = tensors
        self._parts = parts
        mixtures = [(layer, numbers) for layer, numbers in enumerate(spec.layers) if numbers.n_experts]
        blocks = [self._block(layer, "ffn_down_exps") for layer, _ in mixtures]
        self._expert_grain = _columns(mixtures[0][1].d_ff_expert, lcm(*blocks)) if mixtures else 1

    def layer(self, layer: int) -> list[LayerShare]:
        """Of every rank."""
        numbers, parts = self._spec.layers[layer], self._parts
        size, grain = mixer_heads(numbers), self._heads(layer, numbers)
        heads = ranges(size, grain, parts)
        if _has_states(numbers) and size <= grain:
            heads = [range(size), *[range(0)] * (len(parts) - 1)]
        if not numbers.n_experts and not numbers.d_ff:
            return [LayerShare(each, range(0)) for each in heads]
        if not numbers.n_experts:
            down = "ffn_down_t" if self._spec.sparse else "ffn_down"
            block = 1 if self._spec.sparse else self._block(layer, down)
            ff = ranges(numbers.d_ff, _columns(numbers.d_ff, block), parts)
            return [LayerShare(*each) for each in zip(heads, ff, strict=True)]
        ff, experts = self._experts(numbers)
        shared = [range(0)] * len(parts)
        if numbers.beside_cols:
            block = self._block(layer, _beside_down(numbers))
            shared = ranges(numbers.beside_cols, _columns(numbers.beside_cols, block), parts)
        return [LayerShare(*each) for each in zip(heads, ff, experts, shared, strict=True)]

    def _heads(self, layer: int, numbers: LayerNumbers) -> int:
        """Heads in a grain: in attention those of a KV head. Where there are fewer of these than ranks, single ones,
        whose KV head several ranks hold; but not where a norm goes over all keys, which would count some twice."""
        if not mixer_heads(numbers):
            return 1
        least, group = _together(numbers, partial(self._block, layer))
        if mixer_heads(numbers) // group < len(self._parts) and self._spec.family.qk_norm != "full":
            group = 1
        return min(lcm(group, least), mixer_heads(numbers))

    def _experts(self, numbers: LayerNumbers) -> tuple[list[range], list[range]]:
        """Columns of all experts, or whole experts: slices keep all ranks busy whatever is chosen, where they are
        even."""
        everything, nothing = range(numbers.n_experts), range(0)
        columns = range(numbers.d_ff_expert)
        slices = ranges(numbers.d_ff_expert, self._expert_grain, self._parts)
        whole = ranges(numbers.n_experts, 1, self._parts)
        if self._worst(slices) <= max(_UNEVEN, self._worst(whole)):
            return slices, [everything if each else nothing for each in slices]
        return [columns if each else nothing for each in whole], whole

    def _worst(self, given: Sequence[range]) -> float:
        """How many times its due the rank has that has most too much."""
        total, size = sum(self._parts), sum(map(len, given))
        return max(len(each) / size / (part / total) for each, part in zip(given, self._parts, strict=True) if part > 0)

    def _block(self, layer: int, part: str) -> int:
        """Columns that cannot be parted."""
        return self._tensors[tensor_name(layer, part)].type.block_size


def _has_states(numbers: LayerNumbers) -> bool:
    return numbers.recurrence is not None or numbers.conv_taps > 0


def _together(numbers: LayerNumbers, block: Callable[[str], int]) -> tuple[int, int]:
    """Heads of a layer's mixer that blocks of its output's weights hold together, and that share one of keys and
    values. block: columns that cannot be parted, of a part of the layer."""
    if numbers.conv_taps:
        return _columns(numbers.conv_cols, block("shortconv.out_proj")), 1
    if numbers.latent is not None:  # all heads read one vector, or each its own: there is nothing that some share
        output = block("attn_output")
        return output // gcd(output, numbers.latent.value_dim), 1
    of = numbers.recurrence
    if of is None:
        output = block("attn_output")
        return output // gcd(output, numbers.head_dim_v), numbers.n_heads // numbers.n_kv_heads
    output = block("ssm_out")
    width = of.value_dim * (of.group if of.turn == 1 else 1)  # of what lies side by side of a head of keys
    return output // gcd(output, width), 1


def _beside_down(numbers: LayerNumbers) -> str:
    """Whose columns are those of `LayerNumbers.beside_cols`."""
    return "ffn_down" if numbers.dense_beside else "ffn_down_shexp"


def _columns(size: int, block: int) -> int:
    """Of a feed-forward of `size` columns, a grain."""
    wanted = lcm(block, _COLUMNS)
    return wanted if size % wanted == 0 else block
