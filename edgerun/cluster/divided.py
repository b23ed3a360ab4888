"""Along what a layer's tensors are divided among devices: rows of what makes something, columns of what takes it.

What nobody names here every device has whole: norms of what goes through all of them, routers, what is added to a sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from edgerun.models.share import LayerShare, Share, kv_heads_of, units_of, value_heads_of
from edgerun.models.spec import LatentNumbers, LayerNumbers, ModelSpec

Ranges = tuple[range, ...]


@dataclass(frozen=True)
class Divided:
    """By tensors' names within a layer. made: rows of a matrix, numbers of a vector or of the bias of either, that a
    share has. taken: columns of a matrix. Where these are in units, those of one unit after those of another.
    matrices: of tensors that have several, or numbers of their vectors. slices: what the rows of each of them are cut
    into, unit by unit. lacking: what is added to a sum once, by another rank."""

    made: dict[str, Ranges] = field(default_factory=dict)
    taken: dict[str, Ranges] = field(default_factory=dict)
    matrices: dict[str, range] = field(default_factory=dict)
    slices: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()

    def __or__(self, other: Divided) -> Divided:
        return Divided(
            self.made | other.made,
            self.taken | other.taken,
            self.matrices | other.matrices,
            self.slices | other.slices,
            self.lacking | other.lacking,
        )


def layers_divided(spec: ModelSpec, share: Share) -> list[Divided]:
    """What a share has of each layer of the whole model `spec`."""
    held = units_held(spec, share)
    return [_divided(spec, layer, mine, held[layer]) for layer, mine in enumerate(share.layers)]


def units_held(spec: ModelSpec, share: Share) -> list[tuple[int, int]]:
    """How many units of each layer's mixer and feed-forward a share has; 1 where sums are not made of units."""
    if not share.units:
        return [(1, 1)] * spec.n_layers
    units = [units_of(*each) for each in zip(spec.layers, share.layers, share.units, strict=True)]
    return [(len(each.mixer.held), len(each.feed_forward.held)) for each in units]


def _divided(spec: ModelSpec, layer: int, share: LayerShare, units: tuple[int, int]) -> Divided:
    numbers, (mixer, feed_forward) = spec.layers[layer], units
    if numbers.conv_taps:
        found = _convolution(numbers, share.heads, mixer)
    elif numbers.latent is not None:
        found = _latent_attention(numbers.latent, share.heads, mixer)
    elif numbers.recurrence is None:
        found = _attention(spec, numbers, share.heads, mixer)
    elif spec.family.recurrence == "delta":
        found = _delta_net(numbers, share.heads, mixer)
    else:
        found = _mamba(numbers, share.heads, mixer)
    return found | _feed_forward(numbers, share, feed_forward)


def _attention(spec: ModelSpec, numbers: LayerNumbers, heads: range, units: int) -> Divided:
    dim_k, dim_v, kv_heads = numbers.head_dim_k, numbers.head_dim_v, kv_heads_of(numbers, heads)
    dim_q = dim_k + dim_v if spec.family.output_gate == "in_q" else dim_k  # each head's query with its gate
    queries, keys, values = _of_heads(heads, dim_q), _of_heads(kv_heads, dim_k), _of_heads(kv_heads, dim_v)
    results = _of_heads(heads, dim_v)
    q, k = numbers.n_heads * dim_q, numbers.n_kv_heads * dim_k
    made = {
        "attn_q": queries,
        "attn_k": keys,
        "attn_v": values,
        "attn_qkv": (*queries, *_after(q, keys), *_after(q + k, values)),
        "attn_gate": _of_heads(heads, 1) if numbers.gate_per_head else results,
        "attn_sinks": _of_heads(heads, 1),
        "attn_sub_norm": results,
    }
    if spec.family.qk_norm == "full":
        made |= {"attn_q_norm": queries, "attn_k_norm": keys}
    return Divided(made, {"attn_output": _in_units(results, units)})


def _latent_attention(of: LatentNumbers, heads: range, units: int) -> Divided:
    made = {
        "attn_q": _of_heads(heads, of.key_dim),
        "attn_q_b": _of_heads(heads, of.key_dim),
        "attn_kv_b": _of_heads(heads, of.plain_dim + of.value_dim),
    }
    taken = {"attn_output": _in_units(_of_heads(heads, of.value_dim), units)}
    return Divided(made, taken, dict.fromkeys(("attn_k_b", "attn_v_b"), heads))


def _convolution(numbers: LayerNumbers, cols: range, units: int) -> Divided:
    parts = tuple(part for index in range(3) for part in _after(index * numbers.conv_cols, (cols,)))
    made = {"shortconv.in_proj": parts, "shortconv.conv": (cols,)}
    return Divided(made, {"shortconv.out_proj": _in_units((cols,), units)})


def _delta_net(numbers: LayerNumbers, heads: range, units: int) -> Divided:
    n = numbers.recurrence
    assert n is not None  # divided
    value_heads = value_heads_of(n, heads, units)
    keys, values, each = _of_heads(heads, n.key_dim), _of_heads(value_heads, n.value_dim), _of_heads(value_heads, 1)
    both = n.key_heads * n.key_dim
    mixed = (*keys, *_after(both, keys), *_after(2 * both, values))
    made = {
        "attn_qkv": mixed,
        "attn_gate": values,
        "ssm_conv1d": mixed,
        "ssm_beta": each,
        "ssm_alpha": each,
        "ssm_dt": each,
        "ssm_a": each,
        "ssm_in": _of_heads(heads, 2 * (n.key_dim + n.group * n.value_dim)),
        "ssm_ba": _of_heads(heads, 2 * n.group),
    }
    return Divided(made, {"ssm_out": _in_units(values, units)})


def _mamba(numbers: LayerNumbers, groups: range, units: int) -> Divided:
    n = numbers.recurrence
    assert n is not None  # divided
    heads = range(groups.start * n.group, groups.stop * n.group)
    values, keys, each = _of_heads(heads, n.value_dim), _of_heads(groups, n.key_dim), _of_heads(heads, 1)
    all_keys = n.key_heads * n.key_dim
    mixed = (*values, *_after(n.inner, keys), *_after(n.inner + all_keys, keys))
    made = {
        "ssm_in": (*values, *_after(n.inner, mixed), *_after(n.inner + n.conv_cols, each)),
        "ssm_conv1d": mixed,
        "ssm_dt": each,
        "ssm_a": each,
        "ssm_d": each,
        "ssm_norm": (groups,),
    }
    return Divided(made, {"ssm_out": _in_units(values, units)})


def _feed_forward(numbers: LayerNumbers, share: LayerShare, units: int) -> Divided:
    ff, shared = (share.ff,), (share.shared,)
    dense = shared if numbers.dense_beside else ff
    each = _in_units(ff, units)
    made = {
        "ffn_gate": dense,
        "ffn_up": (*dense, *_after(numbers.d_ff, dense)) if numbers.fused_gate_up else dense,
        "ffn_down_t": ff,
        "ffn_sub_norm": dense,
        "ffn_gate_shexp": shared,
        "ffn_up_shexp": (*shared, *_after(numbers.d_ff_shared, shared)) if numbers.fused_shared else shared,
        "ffn_gate_exps": ff,
        "ffn_up_exps": ff,
        "ffn_gate_up_exps": tuple(part for cols in each for part in (cols, *_after(numbers.d_ff_expert, (cols,)))),
    }
    taken = {"ffn_down": _in_units(dense, units), "ffn_down_shexp": _in_units(shared, units), "ffn_down_exps": each}
    slices = frozenset(("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"))
    matrices = dict.fromkeys((*slices, "ffn_down_exps"), share.experts)
    lacking = frozenset(("ffn_down_exps.bias",)) if share.ff.start else frozenset()
    return Divided(made, taken, matrices, slices, lacking)


def _of_heads(heads: Iterable[int], dim: int) -> Ranges:
    """What these heads have of what is `dim` for each: heads that follow each other in one range."""
    found: list[range] = []
    for head in heads:
        low, high = head * dim, (head + 1) * dim
        if found and found[-1].stop == low:
            found[-1] = range(found[-1].start, high)
        else:
            found.append(range(low, high))
    return tuple(found)


def _in_units(ranges: Sequence[range], units: int) -> Ranges:
    """The same, and no range goes beyond its unit."""
    unit = sum(map(len, ranges)) // max(1, units)
    found, left = [], unit
    for each in ranges:
        low = each.start
        while low < each.stop:
            high = min(each.stop, low + left)
            found.append(range(low, high))
            left = left - (high - low) or unit
            low = high
    return tuple(found) or tuple(ranges)


def _after(first: int, parts: Sequence[range]) -> Ranges:
    return tuple(range(first + part.start, first + part.stop) for part in parts)
