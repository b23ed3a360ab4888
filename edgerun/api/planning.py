"""What a model would need and do here, before it is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edgerun.api.loading import choose_context, find_model, model_path, windowed
from edgerun.api.machine_rates import machine_rates
from edgerun.api.prefill import kept_calibration
from edgerun.api.refusals import Refusals, refused_to
from edgerun.api.routing import checked_routing, replayed
from edgerun.errors import FormatError, UnsupportedError, UsageError
from edgerun.events import EventSink
from edgerun.kernels.attention_layout import KEYS_PER_PAGE
from edgerun.models import ModelSpec
from edgerun.models.chunks import CHUNK
from edgerun.models.holdings import kv_groups
from edgerun.new_files import temporary_folder
from edgerun.options import (
    PLAN_NAMES,
    Flag,
    LoadOptions,
    PlanKeywords,
    Whole,
    load_options,
    refused,
)
from edgerun.paths import kind_of
from edgerun.planning import MemoryPlan
from edgerun.planning.device_profile import DeviceProfile
from edgerun.planning.expert_hits import assumed_routing
from edgerun.planning.missing_reads import missing_reads
from edgerun.planning.process import elsewhere_bytes, process_state
from edgerun.planning.rates import Rates
from edgerun.planning.request import RequestPrediction, predict_request
from edgerun.planning.slow_types import slow_types, slow_types_notice
from edgerun.planning.speed import Speed, predict_speed
from edgerun.units import format_size

if TYPE_CHECKING:
    from edgerun.formats.gguf import GgufFile
    from edgerun.kernels.layout import PackedSizes
    from edgerun.prefill.calibrate import Calibration

_TOKENS = Whole(0, 1 << 20)
_THEIR_SHARE = 0.85  # of another machine's memory that a process may have


@dataclass(frozen=True)
class ModelPlan:
    """A memory plan with the speed to expect: `speed` once caches are full, `request` of a first answer, which begins
    with an empty expert cache or, `is_warm`, with what earlier runs kept. `advice`: what would make it faster, or
    nothing."""

    name: str
    context: int
    memory: MemoryPlan
    speed: Speed
    rates: Rates
    advice: str
    download_bytes: int = 0  # of a model that is not here yet
    prefill: str = ""  # what prompts run on and why, where `edgerun calibrate` was asked
    slow: dict[str, float] = field(default_factory=dict)  # types without kernels here -> their share of the weights
    slow_notice: str = ""
    assumed_routing: str = ""  # the model whose choices of experts stand for this one's, where they matter
    windows: str = ""  # which layers keep a part of the context only
    request: RequestPrediction | None = None
    is_warm: bool = False
    is_seen: bool = False  # experts' hits are those of what the last run here chose
    refused: Refusals = field(default_factory=Refusals)

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
            "expected_bytes": self.memory.expected_bytes,
            "speed": asdict(self.speed),
            "rates": self.rates.as_dict(),
            "slow_types": self.slow,
            "advice": self.advice,
            "prefill": self.prefill,
            "assumed_routing": self.assumed_routing,
            "windows": self.windows,
            "refused": self.refused.as_dict(),
            "request": None if self.request is None else asdict(self.request),
            "is_warm": self.is_warm,
            "is_seen": self.is_seen,
        }


def plan_model(
    model: str | Path,
    *,
    routing: Sequence[Sequence[Sequence[int]]] | None = None,
    measure: bool = False,
    device: DeviceProfile | None = None,
    prompt_tokens: int = 256,
    decode_tokens: int = 128,
    **options: Unpack[PlanKeywords],
) -> ModelPlan:
    """Plan a model from its header, which is fetched alone where the model is not here.

    Options as of `LLM`; `routing`: recorded experts, by token and layer, to say how often the cache will have them;
    `measure`: the machine's rates anew; `device`: another machine than this one; the request that is predicted has so
    many tokens. Raises
    DoesNotFitError with the smallest memory that would do, and what `LLM` raises for names and files.
    """
    from edgerun.api.seen import seen_lately
    from edgerun.api.weights import hot_set_path, kv_options, plan_weights
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_sizes
    from edgerun.models import load_spec
    from edgerun.weights import make_catalog

    given = load_options(options, PLAN_NAMES)
    routed, anew = checked_routing(routing), Flag().check("measure", measure)
    n_prompt, n_decode = _TOKENS.check("prompt_tokens", prompt_tokens), _TOKENS.check("decode_tokens", decode_tokens)
    if device is not None and not isinstance(device, DeviceProfile):
        raise refused("device", "a DeviceProfile (`edgerun.planning.device_profile.load_profile`) or None", device)
    state = process_state()  # before measuring loads what a later process will have to load too
    with model_header(model, given.events) as (path, download_bytes), open_gguf(path) as gguf:
        whole = load_spec(gguf)
        spec = windowed(whole, given.window, given.sinks)
        n_context = choose_context(given.context, spec, gguf.metadata, endless=given.window is not None)

        def planned() -> MemoryPlan:
            if device is not None:
                return _elsewhere(gguf, spec, device, n_context, given)
            return plan_weights(
                gguf,
                spec,
                context=n_context,
                memory_bytes=given.memory_bytes,
                kernels=given.kernels,
                state=state,
                kv=kv_options(given.kv),
            )

        planned()  # refuse before anything is measured
        catalog = make_catalog(spec.tensors, spec.n_layers)
        sizes = load_sizes(given.kernels) if device is None else sizes_of(device)
        packed = device is None and not download_bytes and _is_packed(gguf, given.kernels)
        reads = missing_reads(gguf, catalog, packed=packed)
        taken: list[str] = []
        if device is None:
            rates = machine_rates(reads, not download_bytes, catalog, given, anew)
        else:
            rates, taken = device.rates(catalog, reads.piece_bytes)
        plan = planned()  # kernels are compiled now
        last = None
        if plan.mode == "experts" and device is None and not download_bytes:
            last = seen_lately(gguf, spec, catalog, reads, plan.early_slots, given.events, packed=packed)
        if last is not None:
            routed = routed or last.routing
            rates = replace(rates, disk_bytes_per_s=last.disk_bytes_per_s or rates.disk_bytes_per_s)
        slow, notice = slow_types(spec.tensors, sizes), slow_types_notice(spec.tensors, sizes)
        warm = device is None and not download_bytes and plan.mode == "experts" and hot_set_path(gguf).is_file()
        full, hits = None, None
        if routed is not None and plan.mode == "experts":
            full, hits = replayed(
                routed, plan.early_slots, spec, prompt_tokens=n_prompt, decode_tokens=n_decode, warm=warm
            )
        speed = predict_speed(catalog, spec, plan, sizes, rates, hit_rate=full, packed=packed)
        request = predict_request(
            catalog,
            spec,
            plan,
            sizes,
            rates,
            prompt_tokens=n_prompt,
            decode_tokens=n_decode,
            hits=hits,
            packed=packed,
            warm=warm,
        )
        calibrated = None if download_bytes or device is not None else kept_calibration(gguf, plan.mode, given.events)
    prefill = ""
    if calibrated is not None:
        prefill = f"{calibrated.choice} ({calibrated.why})"
        if plan.mode == "resident":
            speed = _measured_prompt(speed, calibrated)
    advice, windows = _advice(plan), _windows(spec, n_context)
    if device is not None:
        prefill = ""
        if taken:
            advice += f"{'; ' if advice else ''}{device.name} has no rates of {', '.join(taken)}: those of a like type"
    assumed = assumed_routing(spec) if plan.mode == "experts" and routed is None else ""
    return ModelPlan(
        path.stem,
        n_context,
        plan,
        speed,
        rates,
        advice,
        download_bytes,
        prefill,
        slow,
        notice,
        assumed,
        windows,
        request,
        warm,
        last is not None and routing is None,
        refused_to(whole),
    )


def _is_packed(gguf: GgufFile, kernels: str) -> bool:
    """Whether what is missing will come from a pack file, so that nothing is packed when it has been read."""
    from edgerun.kernels.choice import choose
    from edgerun.kernels.layout import layout_name
    from edgerun.weights.packing import has_pack

    return kernels != "reference" and has_pack(gguf, layout_name(choose(kernels).lanes))


def sizes_of(device: DeviceProfile) -> PackedSizes:
    """What matrices take in the kernels of another machine. UsageError for kernels that there are not."""
    from edgerun.kernels.isa import ISAS
    from edgerun.kernels.layout import PackedSizes

    if device.kernels not in ISAS:
        raise UsageError(f"{device.name}: its kernels must be one of {', '.join(ISAS)}, got {device.kernels!r}")
    return PackedSizes(ISAS[device.kernels].lanes)


def _elsewhere(
    gguf: GgufFile, spec: ModelSpec, device: DeviceProfile, context: int, options: LoadOptions
) -> MemoryPlan:
    """On another machine, of whose memory others have a part."""
    from edgerun.api.weights import kv_options
    from edgerun.planning import plan_memory
    from edgerun.weights import make_catalog

    return plan_memory(
        gguf.path.name,
        make_catalog(spec.tensors, spec.n_layers),
        spec,
        sizes_of(device),
        context=context,
        budget_bytes=min(options.memory_bytes or device.memory_bytes, int(_THEIR_SHARE * device.memory_bytes)),
        runtime_bytes=elsewhere_bytes(gguf.metadata),
        limited=device.name,
        kv=kv_options(options.kv),
    )


def slow_types_of(path: Path, kernels: str = "auto") -> tuple[dict[str, float], str]:
    """Of a model file: the types that have no kernels here with their share of the weights, and what to say about it
    ("" where it does not matter). NotFoundError, FormatError."""
    from edgerun.formats.gguf import open_gguf
    from edgerun.kernels import load_sizes

    with open_gguf(path) as gguf:
        sizes = load_sizes(kernels)
        return slow_types(gguf.tensors, sizes), slow_types_notice(gguf.tensors, sizes)


@dataclass(frozen=True)
class SequenceMemory:
    """What a sequence takes: `position_bytes` of keys and values for each of its tokens, as f16; `state_bytes` of its
    recurrent layers' states, whatever its length, and as much for each of its checkpoints (0: there are none)."""

    position_bytes: int
    state_bytes: int


def sequence_memory_of(path: Path) -> SequenceMemory | None:
    """Of a model file; None where it holds no model that edgerun runs. NotFoundError."""
    from edgerun.formats.gguf import open_gguf
    from edgerun.kv.states import block_bytes
    from edgerun.models import load_spec
    from edgerun.models.holdings import states_of

    with open_gguf(path) as gguf:
        try:
            spec = load_spec(gguf)
        except (FormatError, UnsupportedError):
            return None
    pages = sum(group.page_bytes for group in kv_groups(spec))
    return SequenceMemory(pages // KEYS_PER_PAGE, block_bytes(states_of(spec).layouts))


@contextlib.contextmanager
def model_header(model: str | Path, events: EventSink) -> Iterator[tuple[Path, int]]:
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
            with temporary_folder() as folder:
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


def _windows(spec: ModelSpec, context: int) -> str:
    """Of a model whose layers do not all see everything: how much these keep of a long context."""
    groups = [group for group in kv_groups(spec) if group.window]
    layers = sum(len(group.layers) for group in groups)
    kept = max((KEYS_PER_PAGE * group.most_pages(context, CHUNK) for group in groups), default=context)
    return f"{layers} of {spec.n_layers} layers keep the last {kept} tokens" if kept < context else ""


def _advice(plan: MemoryPlan) -> str:
    if plan.mode == "resident":
        return ""
    if plan.kv_bytes > plan.cache_bytes // 4:
        return f"a smaller --context frees memory for weights: its KV cache takes {format_size(plan.kv_bytes)}"
    if plan.mode == "experts" and plan.cached_share < 0.5:
        return "more --memory, or a smaller quantisation, raises the share of experts that are cached"
    return ""
