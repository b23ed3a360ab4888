"""How a model is run in the memory that there is: all of it resident, its experts cached, or its layers streamed.

Everything is known from the header, so that a plan can be made before anything is read or even downloaded. The
budget is split in the order of value: the process itself, dense weights, keys and values, activations and the
readers' buffers are needed whatever happens; what is left keeps experts or layers from being read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

from edgerun.device import MemoryLimits
from edgerun.errors import DoesNotFitError
from edgerun.formats.gguf import GgmlType, TensorInfo
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.kernels.layout import neuron_scratch_bytes
from edgerun.kv import KvOptions
from edgerun.models import ModelSpec, holdings
from edgerun.models.chunks import CHUNK
from edgerun.models.footprint import activation_bytes
from edgerun.units import format_size, round_up_size
from edgerun.weights.catalog import Catalog, LayerTensors
from edgerun.weights.flash import STAGING_BYTES
from edgerun.weights.store import Mode

BUFFERS = 2  # layers of the window
GROWTH_BYTES = 16 << 20  # templates, sampling, Python's own: what a running process adds to a loaded one
_MOST_WAVE = 4096  # tokens of a prompt that pass a layer together
_WAVE_SHARE = 0.06  # of the budget that a wave may take when layers stream
_LENT_SHARE = 0.35  # of the expert cache that a wave may borrow
_LEAST_NEURONS = 16  # of so many, one must have a slot
_SMALLEST_CONTEXT = 256  # not worth advising less
_SYSTEM_PAGE = 4096
EARLY_POSITIONS = 512  # of a session, until it has taken more of the memory for keys and values


class Sizes(Protocol):
    """Of the kernels: what a matrix takes once packed."""

    def packed_bytes(self, type: GgmlType, rows: int, cols: int) -> int: ...


@dataclass(frozen=True)
class MemoryPlan:
    """The ledger: what every byte of the budget is for. `slots`: experts that are cached; `lent_slots`: more of them,
    in the memory for keys and values, while one session has no more than `EARLY_POSITIONS`; `pinned`: layers that stay;
    `wave_tokens`: of a prompt that pass a layer together. `floor_bytes`: the smallest budget that the model runs in at
    this context."""

    mode: Mode
    budget_bytes: int
    runtime_bytes: int
    dense_bytes: int
    kv_bytes: int
    activation_bytes: int
    reader_bytes: int
    margin_bytes: int
    cache_bytes: int
    floor_bytes: int
    wave_tokens: int
    slots: int = 0
    lent_slots: int = 0
    slot_bytes: int = 0
    all_experts: int = 0
    pinned: int = 0
    layers: int = 0
    neuron_slots: int = 0  # of each layer, where feed-forwards are sparse
    all_neurons: int = 0  # of a layer
    neuron_cache_bytes: int = 0
    state_bytes: int = 0  # of a sequence's recurrent states, which do not grow

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(n_bytes for _, n_bytes in self.accounts())

    @property
    def expected_bytes(self) -> int:
        """The most that the process will hold as far as one can tell: all but the margin, and of a resident model
        either what reading its largest tensor takes or what computing takes afterwards."""
        computing = self.context_bytes + self.activation_bytes
        spared = min(self.reader_bytes, computing) if self.mode == "resident" else 0
        return self.total_bytes - self.margin_bytes - spared

    @property
    def context_bytes(self) -> int:
        """Of one whole context."""
        return self.kv_bytes + self.state_bytes

    @property
    def kv_limit_bytes(self) -> int:
        """Of all sessions together: one whole context, and what nothing else has a use for."""
        return self.context_bytes + max(0, self.budget_bytes - self.total_bytes)

    @property
    def cached_share(self) -> float:
        """Of the experts or layers, those that stay in memory, beside a session that is not long yet."""
        if self.mode == "experts":
            return self.early_slots / self.all_experts
        return self.pinned / self.layers if self.mode == "layers" else 1.0

    @property
    def early_slots(self) -> int:
        """Experts that are cached while a session is not long yet."""
        return self.slots + self.lent_slots

    def accounts(self) -> list[tuple[str, int]]:
        """(name, bytes) of every use."""
        return [
            ("runtime", self.runtime_bytes),
            ("dense weights", self.dense_bytes),
            ("kv cache", self.kv_bytes),
            *([("states", self.state_bytes)] if self.state_bytes else []),
            ("activations", self.activation_bytes),
            ("read buffers", self.reader_bytes),
            ("margin", self.margin_bytes),
            ({"experts": "expert cache", "layers": "layer window"}.get(self.mode, "cache"), self.cache_bytes),
            *([("neuron cache", self.neuron_cache_bytes)] if self.neuron_slots else []),
        ]


def plan_memory(
    name: str,
    catalog: Catalog,
    spec: ModelSpec,
    sizes: Sizes,
    *,
    context: int,
    budget_bytes: int,
    runtime_bytes: int,
    limited: str = "",
    kv: KvOptions | None = None,
) -> MemoryPlan:
    """Split `budget_bytes` (of the whole process, of which `runtime_bytes` are in use already or will be).

    `limited`: whose limit the budget is, for messages. kv: how keys and values are kept.
    DoesNotFitError below the floor, naming it and what lowers it.
    """
    head = sum(sizes.packed_bytes(info.type, *info.shape) for info in catalog.outer_matrices)
    vectors = sum(4 * prod(info.shape) for each in catalog.layers for info in each.vectors.values())
    outside = head + vectors + sum(4 * info.shape[0] for info in catalog.outside.values())
    layer_bytes = [_matrices_bytes(layer, sizes) for layer in catalog.layers]
    expert_bytes = [_expert_bytes(layer, sizes) for layer in catalog.layers]
    slot = -(-max(expert_bytes) // _SYSTEM_PAGE) * _SYSTEM_PAGE
    n_experts = catalog.n_experts
    bank = sum(each * n_experts for each in expert_bytes)
    kv_bytes = holdings.kv_bytes(spec, context, CHUNK, kv)
    scratch = neuron_scratch_bytes(catalog.neuron_types(), spec.d_model)
    state_bytes = holdings.state_bytes(spec, context)
    fixed = runtime_bytes + GROWTH_BYTES + scratch + kv_bytes + state_bytes
    least = activation_bytes(spec, CHUNK)
    common = {
        "budget_bytes": budget_bytes,
        "runtime_bytes": runtime_bytes + GROWTH_BYTES + scratch,
        "state_bytes": state_bytes,
    }
    largest = max(info.n_bytes for info in (*catalog.outer_matrices, *_all_infos(catalog)))
    neuron_bytes = [each.neuron_bytes for each in catalog.layers]
    everything = outside + sum(layer_bytes) + bank + sum(neuron_bytes) * catalog.n_neurons
    reader = reader_threads(catalog) * STAGING_BYTES
    least_neurons = -(-catalog.n_neurons // _LEAST_NEURONS)
    if n_experts:
        smallest = slot * (2 * spec.n_experts_used + 2)
        floor = fixed + least + reader + outside + sum(layer_bytes) + smallest
    else:
        window = BUFFERS * max(layer_bytes)
        neurons = least_neurons * sum(neuron_bytes)
        floor = fixed + least + reader + outside + neurons + min(window, sum(layer_bytes))
    resident = _with_margin(fixed + least + everything + largest)
    floor = round_up_size(min(_with_margin(floor), resident))
    if budget_bytes < floor:
        raise DoesNotFitError(_refusal(name, floor, spec, context, budget_bytes, limited, kv))
    if budget_bytes >= resident:
        return MemoryPlan(
            mode="resident",
            dense_bytes=everything,
            activation_bytes=least,
            reader_bytes=largest,
            kv_bytes=kv_bytes,
            cache_bytes=0,
            margin_bytes=_margin(resident),
            floor_bytes=floor,
            wave_tokens=0,
            **common,
        )
    margin = _margin(budget_bytes)
    if n_experts:  # a wave borrows slots for as long as it takes: decoding needs little
        active = activation_bytes(spec, 1)
        rest = budget_bytes - margin - (fixed + active + reader + outside + sum(layer_bytes))
        more = (
            holdings.kv_bytes(spec, context, _MOST_WAVE, kv) - kv_bytes
        )  # layers with a window hold a whole wave's keys and values
        if rest - more < 2 * smallest:
            more = 0
        slots = min((rest - more) // slot, catalog.n_all_experts)
        positions = min(context, EARLY_POSITIONS)
        early = holdings.kv_bytes(spec, positions, CHUNK, kv) + holdings.state_bytes(spec, positions)
        wave = _wave_tokens(
            spec, context, kv, min(int(_LENT_SHARE * slots * slot), slots * slot - smallest), kv_bytes + more
        )
        return MemoryPlan(
            mode="experts",
            dense_bytes=outside + sum(layer_bytes),
            kv_bytes=kv_bytes + more,
            activation_bytes=active,
            reader_bytes=reader,
            cache_bytes=slots * slot,
            margin_bytes=margin,
            floor_bytes=floor,
            wave_tokens=wave,
            slots=slots,
            lent_slots=max(0, min((kv_bytes + more + state_bytes - early) // slot, catalog.n_all_experts - slots)),
            slot_bytes=slot,
            all_experts=catalog.n_all_experts,
            layers=len(layer_bytes),
            **common,
        )
    spared = (budget_bytes - floor) * 63 // 64
    wave = _wave_tokens(spec, context, kv, min(int(_WAVE_SHARE * budget_bytes), spared + least), kv_bytes + spared // 2)
    active, more = activation_bytes(spec, wave), holdings.kv_bytes(spec, context, wave, kv) - kv_bytes
    rest = budget_bytes - margin - (fixed + more + active + reader + outside + window + neurons)
    pinned = min(rest // max(layer_bytes), len(layer_bytes) - BUFFERS)
    kept = least_neurons
    if neurons:  # what every token reads stays first, then what only some tokens need
        rest -= pinned * max(layer_bytes)
        kept = min(catalog.n_neurons, kept + rest // sum(neuron_bytes))
    return MemoryPlan(
        mode="layers",
        kv_bytes=kv_bytes + more,
        dense_bytes=outside + pinned * max(layer_bytes),
        activation_bytes=active,
        reader_bytes=reader,
        cache_bytes=window,
        margin_bytes=margin,
        floor_bytes=floor,
        wave_tokens=wave,
        pinned=pinned,
        layers=len(layer_bytes),
        neuron_slots=kept,
        all_neurons=catalog.n_neurons,
        neuron_cache_bytes=kept * sum(neuron_bytes),
        **common,
    )


def reader_threads(catalog: Catalog) -> int:
    """Reads in flight: many small ones where neurons are read one by one."""
    return 8 if catalog.n_neurons else 3


def process_budget(asked_bytes: int | None, memory: MemoryLimits, private_bytes: int) -> tuple[int, str]:
    """The budget of this process and whose limit it is: what was asked for, but no more than there is.

    `private_bytes`: what the process holds already and gives back when it ends; it is not part of what is available.
    Without a request or a limit a twentieth of the machine's memory is left to others.
    """
    there = min(memory.available_bytes + private_bytes, memory.limit_bytes)
    group = memory.cgroup_limit_bytes is not None
    if asked_bytes is not None and asked_bytes <= there:
        return asked_bytes, "--memory"
    if group:
        return there, "this process's memory limit"
    return there - (0 if asked_bytes is not None else there // 20), "what is available"


def _all_infos(catalog: Catalog) -> list[TensorInfo]:
    layers = catalog.layers
    return [i for each in layers for i in (*each.matrices.values(), *each.experts.values(), *each.neurons.values())]


def _matrices_bytes(layer: LayerTensors, sizes: Sizes) -> int:
    return sum(_rounded(sizes.packed_bytes(info.type, *info.shape)) for info in layer.matrices.values())


def _expert_bytes(layer: LayerTensors, sizes: Sizes) -> int:
    rows = layer.expert_rows
    return sum(_rounded(sizes.packed_bytes(each.info.type, each.rows, each.info.shape[-1])) for each in rows)


def _rounded(n_bytes: int) -> int:
    return -(-n_bytes // 64) * 64


def _margin(budget_bytes: int) -> int:
    """For page tables, and for what an allocator holds back."""
    return (16 << 20) + budget_bytes // 64


def _with_margin(n_bytes: int) -> int:
    """The smallest budget that has so much beside its margin."""
    return (n_bytes + (16 << 20)) * 64 // 63 + 2


def _wave_tokens(spec: ModelSpec, context: int, kv: KvOptions | None, most_bytes: int, most_kv_bytes: int) -> int:
    """As many tokens as these bytes of activations, and of keys and values, allow: every expert is read once a wave."""
    wave = CHUNK
    while (
        wave < _MOST_WAVE
        and activation_bytes(spec, wave + CHUNK) <= most_bytes
        and holdings.kv_bytes(spec, context, wave + CHUNK, kv) <= most_kv_bytes
    ):
        wave += CHUNK
    return wave


def _context_within(spec: ModelSpec, context: int, kv: KvOptions | None, most_bytes: int) -> int:
    """The longest below `context`, of whole pages, whose keys and values take no more; 0 for none."""
    low, high = 0, context // KEYS_PER_PAGE
    while low < high:
        middle = (low + high + 1) // 2
        if holdings.kv_bytes(spec, middle * KEYS_PER_PAGE, CHUNK, kv) <= most_bytes:
            low = middle
        else:
            high = middle - 1
    return low * KEYS_PER_PAGE


def _refusal(
    name: str, floor: int, spec: ModelSpec, context: int, budget: int, limited: str, kv: KvOptions | None
) -> str:
    advice = []
    shown = round_up_size(budget)
    below = 2 * shown - round_up_size(shown + 1)  # no more than the budget, and a size that a floor can be
    possible = _context_within(spec, context, kv, holdings.kv_bytes(spec, context, CHUNK, kv) - (floor - below))
    if possible >= _SMALLEST_CONTEXT:
        advice.append(f"a context of {possible} would do")
    advice.append("give it more memory, or take a smaller model or quantisation")
    under = f" ({limited})" if limited else ""
    return (
        f"{name} needs at least {format_size(floor)} of memory, of which the KV cache of {context} tokens is "
        f"{format_size(holdings.kv_bytes(spec, context, CHUNK, kv))}, but may have {format_size(budget)}{under}; "
        f"{' or '.join(advice)}"
    )
