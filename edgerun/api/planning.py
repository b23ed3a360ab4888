"""What a model would need and do here, before it is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edgerun import paths
from edgerun.api.loading import choose_context, find_model, model_path
from edgerun.api.prefill import kept_calibration
from edgerun.errors import UsageError
from edgerun.events import EventSink
from edgerun.models import ModelSpec
from edgerun.options import PLAN_NAMES, Flag, LoadOptions, PlanKeywords, as_whole, items_of, load_options, refused
from edgerun.paths import kind_of
from edgerun.planning import MemoryPlan
from edgerun.planning.rates import Rates, load_rates, measure_disk, measure_kernels, probe_file, save_rates
from edgerun.planning.speed import Speed, predict_speed
from edgerun.units import format_size
from edgerun.weights.eviction import DecayedFrequency, hit_rate

if TYPE_CHECKING:
    from edgerun.prefill.calibrate import Calibration


@dataclass(frozen=True)
class ModelPlan:
    """A memory plan with the speed to expect. `advice`: what would make it faster, or nothing."""

    name: str
    context: int
    memory: MemoryPlan
    speed: Speed
    rates: Rates
    advice: str
    download_bytes: int = 0  # of a model that is not here yet
    prefill: str = ""  # what prompts run on and why, where `edgerun calibrate` was asked

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": self.name,
            "context": self.context,
            "download_bytes": self.download_bytes,
            "mode": self.memory.mode,
            "accounts_bytes": dict(self.memory.accounts()),
            "memory": asdict(self.memory),
            "cached_share": self.memory.cached_share,
            "speed": asdict(self.speed),
            "rates": asdict(self.rates),
            "advice": self.advice,
            "prefill": self.prefill,
        }


def plan_model(
    model: str | Path,
    *,
    routing: Sequence[Sequence[Sequence[int]]] | None = None,
    measure: bool = False,
    **options: Unpack[PlanKeywords],
) -> ModelPlan:
    """Plan a model from its header, which is fetched alone where the model is not here.

    Options as of `LLM`; `routing`: recorded experts, by token and layer, to say how often the cache will have them;
    `measure`: the machine's rates anew. Raises DoesNotFitError with the smallest memory that would do, and what `LLM`
    raises for names and files.
    """
    from edgerun.api.weights import plan_weights
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_sizes
    from edgerun.models import load_spec
    from edgerun.weights import make_catalog

    given = load_options(options, PLAN_NAMES)
    routed, anew = checked_routing(routing), Flag().check("measure", measure)
    with _header(model, given.events) as (path, download_bytes), open_gguf(path) as gguf:
        spec = load_spec(gguf)
        n_context = choose_context(given.context, spec.context_length, gguf.metadata, gguf.architecture)
        plan = plan_weights(gguf, spec, context=n_context, memory_bytes=given.memory_bytes, kernels=given.kernels)
        catalog = make_catalog(spec.tensors, spec.n_layers)
        piece = min(
            (info.n_bytes // info.shape[0] for each in catalog.layers for info in each.experts.values()), default=0
        )
        piece = piece or (4 << 20)
        rates = _rates(None if download_bytes else path, piece, given, anew)
        hits = None if routed is None or plan.mode != "experts" else _replayed(routed, plan.slots, spec)
        speed = predict_speed(catalog, spec, plan, load_sizes(given.kernels), rates, hit_rate=hits)
        calibrated = None if download_bytes else kept_calibration(gguf, plan.mode)
    prefill = ""
    if calibrated is not None:
        prefill = f"{calibrated.choice} ({calibrated.why})"
        if plan.mode == "resident":
            speed = _measured_prompt(speed, calibrated)
    advice = _advice(plan, spec.kv_bytes(n_context))
    return ModelPlan(path.stem, n_context, plan, speed, rates, advice, download_bytes, prefill)


@contextlib.contextmanager
def _header(model: str | Path, events: EventSink) -> Iterator[tuple[Path, int]]:
    """A file with the model's header, and what is to be downloaded: 0 when the file is the model."""
    path = model_path(model)
    if isinstance(model, Path) or kind_of(path):
        yield find_model(model, events), 0
        return
    from edgerun.hub.cache import find_cached
    from edgerun.hub.header import fetch_header
    from edgerun.hub.resolve import locate

    found = locate(model)
    if not isinstance(found, Path):
        cached = find_cached(found)
        if cached is None:
            with paths.temporary_folder() as folder:
                yield fetch_header(found, folder, events=events)
            return
        found = cached.paths[0]
    yield found, 0


def _measured_prompt(speed: Speed, calibrated: Calibration) -> Speed:
    """The prompt's rate as it was measured, of chunks as large as the prediction's prompt or the next smaller ones."""
    rows = [row for row in calibrated.rows if row.backend == calibrated.choice and row.tokens <= speed.prompt_tokens]
    if not rows:
        return speed
    row = max(rows, key=lambda row: row.tokens)
    rate = row.tokens / row.prompt_s
    return replace(speed, prompt_tok_s=rate, first_token_s=speed.prompt_tokens / rate)


def checked_routing(routing: object) -> list[list[list[int]]] | None:
    """Expert ids by token and layer, as many layers for each token. UsageError for anything else; None stays."""
    if routing is None:
        return None
    tokens = [[_expert_ids(layer) for layer in items_of(token) or ()] for token in items_of(routing) or ()]
    if not tokens or any(not token or len(token) != len(tokens[0]) or not all(token) for token in tokens):
        raise refused("routing", "a list over tokens of lists over layers of expert ids", routing)
    return tokens


def _expert_ids(layer: object) -> list[int]:
    """Nothing where they are not all whole numbers from 0 on."""
    items = items_of(layer) or []
    ids = [number for number in map(as_whole, items) if number is not None and number >= 0]
    return ids if len(ids) == len(items) else []


def _replayed(routing: Sequence[Sequence[Sequence[int]]], slots: int, spec: ModelSpec) -> float:
    """Hits that a cache of so many experts has on this routing, after its first third."""
    widest = max(i for token in routing for layer in token for i in layer)
    if len(routing[0]) != spec.n_layers or widest >= spec.n_experts:
        raise UsageError(
            f"the routing is of {len(routing[0])} layers and at least {widest + 1} experts, "
            f"the model has {spec.n_layers} layers of {spec.n_experts}"
        )
    policy = DecayedFrequency(spec.n_layers, spec.n_experts)
    return hit_rate(policy, routing, slots, spec.n_experts, skip_tokens=len(routing) // 3)


def _rates(path: Path | None, piece_bytes: int, options: LoadOptions, measure: bool) -> Rates:
    """Kept ones where they are; the disk is measured for pieces of another size too, with the model's file or (None)
    one of its own."""
    from edgerun.kernels import load_kernels

    kept = paths.cache_dir() / f"rates-{options.kernels}-{options.threads}.json"
    known = None if measure else load_rates(kept)
    if known is None or not 0.5 <= known.disk_piece_bytes / piece_bytes <= 2:
        if known is None:
            impl = load_kernels(options.kernels, threads=options.n_threads, events=options.events)
            try:
                decode, prompt = measure_kernels(impl)
            finally:
                impl.close()
        else:
            decode, prompt = known.decode_bytes_per_s, known.prompt_ops_per_s
        if path is None:
            with probe_file(kept.parent) as probe:
                disk = measure_disk(probe, piece_bytes)
        else:
            piece_bytes = min(piece_bytes, path.stat().st_size // 4)
            disk = measure_disk(path, piece_bytes)
        known = Rates(decode, prompt, disk, piece_bytes)
        with contextlib.suppress(OSError):  # measured again next time
            save_rates(kept, known)
    return known


def _advice(plan: MemoryPlan, kv_bytes: int) -> str:
    if plan.mode == "resident":
        return ""
    if kv_bytes > plan.cache_bytes // 4:
        return f"a smaller --context frees memory for weights: its KV cache takes {format_size(kv_bytes)}"
    if plan.mode == "experts" and plan.cached_share < 0.5:
        return "more --memory, or a smaller quantisation, raises the share of experts that are cached"
    return ""
