"""From a memory plan to the store that keeps to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from edgerun import paths
from edgerun.device import memory_limits
from edgerun.events import EventSink
from edgerun.formats.gguf import GgufFile
from edgerun.kernels import Kernels, kernels_missing, load_kernels, load_sizes
from edgerun.kernels.kv_formats import KV_FORMATS
from edgerun.kv import KvOptions
from edgerun.models import ModelSpec
from edgerun.planning import MemoryPlan, plan_memory, process_budget
from edgerun.planning.memory import BUFFERS, reader_threads
from edgerun.planning.process import ProcessState, loaded_bytes, process_state
from edgerun.text import text_bytes
from edgerun.weights import ResidentStore, StreamedExpertStore, StreamedLayerStore, WeightStore, make_catalog
from edgerun.weights.hot_set import load_scores, save_scores
from edgerun.weights.identity import header_digest
from edgerun.weights.streamed_layers import spread


def plan_weights(
    gguf: GgufFile,
    spec: ModelSpec,
    *,
    context: int,
    memory_bytes: int | None,
    kernels: Kernels | str,
    reserved_bytes: int = 0,
    state: ProcessState | None = None,
    kv: KvOptions | None = None,
) -> MemoryPlan:
    """How this process will hold the model. Before the kernels are loaded (their name is given) what they, the
    libraries and the vocabulary will take is estimated. `reserved_bytes`: of the budget, for others. `state`: of the
    process, if not what it is now. Raises DoesNotFitError."""
    state = state or process_state()
    budget, limited = process_budget(memory_bytes, memory_limits(), state.private_bytes)
    catalog, runtime_bytes = make_catalog(spec.tensors, spec.n_layers), state.resident_bytes
    if isinstance(kernels, str):
        kept = kv or KvOptions()
        formats = kept.keys, kept.values
        kinds = {
            "recurrent": catalog.recurrent,
            "streams": catalog.streams,
            "mixture": bool(catalog.n_experts),
            "ranks": spec.shard is not None,
        }
        compiles = kernels_missing(kernels, catalog.types(), catalog.neuron_types(), formats, **kinds)
        runtime_bytes = loaded_bytes(state, gguf.metadata, compiles=compiles)
    return plan_memory(
        gguf.path.name,
        catalog,
        spec,
        load_sizes(kernels) if isinstance(kernels, str) else kernels,
        context=context,
        budget_bytes=budget,
        runtime_bytes=runtime_bytes + text_bytes(gguf.metadata) + reserved_bytes,
        limited=limited,
        kv=kv,
    )


def kv_options(words: str) -> KvOptions:
    """Of the option `kv`: one format, or those of keys and of values with a slash between."""
    keys, _, values = words.partition("/")
    return KvOptions(KV_FORMATS[keys], KV_FORMATS[values or keys])


def load_kernels_for(
    spec: ModelSpec, name: str, *, threads: int | None, events: EventSink, kv: KvOptions | None = None
) -> Kernels:
    """The kernels called `name`, with all that the model needs compiled."""
    catalog = make_catalog(spec.tensors, spec.n_layers)
    neurons = catalog.neuron_types() if catalog.n_neurons else []
    kept = kv or KvOptions()
    return load_kernels(
        name,
        threads=threads,
        events=events,
        types=catalog.types(),
        neuron_types=neurons,
        kv=(kept.keys, kept.values),
        recurrent=catalog.recurrent,
        streams=catalog.streams,
        mixture=bool(catalog.n_experts),
        ranks=spec.shard is not None,
    )


def open_store(
    gguf: GgufFile, spec: ModelSpec, kernels: Kernels, plan: MemoryPlan, *, prefetch: bool, events: EventSink
) -> tuple[WeightStore, Callable[[], None]]:
    """The store, and what closes it and keeps what it learned for the next run."""
    if plan.mode == "resident":
        resident = ResidentStore(gguf, spec, kernels, events=events)
        return resident, resident.close
    catalog = make_catalog(spec.tensors, spec.n_layers)
    threads, profile = reader_threads(catalog), hot_set_path(gguf)
    store: StreamedLayerStore | StreamedExpertStore
    if plan.mode == "layers":
        store = StreamedLayerStore(
            gguf,
            spec,
            kernels,
            pinned=spread(plan.layers, plan.pinned),
            wave_tokens=plan.wave_tokens,
            buffers=BUFFERS,
            reader_threads=threads,
            neuron_slots=plan.neuron_slots,
            scores=load_scores(profile, spec.n_layers, catalog.n_neurons, events) if catalog.n_neurons else None,
            events=events,
        )
    else:
        store = StreamedExpertStore(
            gguf,
            spec,
            kernels,
            slots=plan.slots,
            wave_tokens=plan.wave_tokens,
            scores=load_scores(profile, spec.n_layers, catalog.n_experts, events),
            predict=prefetch,
            reader_threads=threads,
            spare_bytes=plan.kv_limit_bytes,
            events=events,
        )
    with ExitStack() as stack:
        stack.callback(store.close)
        stack.callback(_keep, store, profile)
        if isinstance(store, StreamedExpertStore):
            from edgerun.api.seen import keep_seen

            stack.callback(keep_seen, store, gguf, catalog, plan.early_slots)
        return store, stack.pop_all().close


def hot_set_path(gguf: GgufFile) -> Path:
    """Where what was hot in runs of a model is kept."""
    return paths.cache_dir() / "hot" / f"{header_digest(gguf)}.hot"


def _keep(store: StreamedExpertStore | StreamedLayerStore, profile: Path) -> None:
    scores = store.scores
    if scores is not None and scores.any():
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs the next start its warmth
            save_scores(profile, scores)
