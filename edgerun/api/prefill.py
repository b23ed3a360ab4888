"""Prompt backends for a loaded model: what the user chose, or what was measured to be best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun import paths
from edgerun.errors import DoesNotFitError, EdgerunError, UntrustedError, UsageError
from edgerun.events import EventSink, Notice, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.kernels import Kernels
from edgerun.models import Decoder, ModelSpec
from edgerun.planning import MemoryPlan
from edgerun.units import format_size
from edgerun.weights.store import Mode

if TYPE_CHECKING:
    from edgerun.prefill.backend import OnnxBackend
    from edgerun.prefill.calibrate import Calibration
    from edgerun.prefill.choice import PromptChoice

BACKEND_BYTES = 64 << 20  # of onnxruntime's libraries and sessions, before these are loaded and can be measured


def prefill_dir() -> Path:
    """Graphs, ranges and calibrations."""
    return paths.cache_dir() / "prefill"


@dataclass(frozen=True)
class WantedBackend:
    """What prompts shall run on. `calibration`: it was chosen by this one, and the kernels will do as well."""

    choice: PromptChoice
    calibration: Calibration | None = None

    def reserve_bytes(self, spec: ModelSpec, plan: MemoryPlan) -> int:
        """Of a streamed model's memory, which is all spoken for otherwise."""
        from edgerun.prefill.segments import scratch_bytes

        return 0 if plan.mode == "resident" else scratch_bytes(spec, self.choice.scheme)


def wanted_backend(
    prefill: str, gguf: GgufFile, kernels: Kernels, mode: Mode, events: EventSink
) -> WantedBackend | None:
    """What `prefill` names, or None for our kernels. UsageError for a backend that is unknown or not here.

    "auto": what `calibrate_model` chose for this model with these versions on this machine, the kernels where it was
    not asked; a Notice where its choice is not here any more."""
    if prefill == "kernels":
        return None
    if prefill != "auto":
        return WantedBackend(_parsed(prefill))
    on = ""
    try:
        found = known_calibration(gguf, kernels, mode, events)
        if found is None or found.choice == "kernels":
            return None
        on = f" on {found.choice}"
        return WantedBackend(_parsed(found.choice), found)
    except EdgerunError as error:
        events(Notice(f"prompts run on the kernels, not{on} as calibrated: {error}"))
        return None


def _parsed(text: str) -> PromptChoice:
    from edgerun.prefill.choice import parse_choice  # a twelfth of a small model's start, and mostly not needed

    return parse_choice(text)


def plan_backend(
    prefill: str,
    gguf: GgufFile,
    spec: ModelSpec,
    kernels: Kernels,
    planned: Callable[[int], MemoryPlan],
    events: EventSink,
) -> tuple[WantedBackend | None, MemoryPlan]:
    """What prompts shall run on, as of `wanted_backend`, and the plan that has room for it. `planned`: the plan beside
    so many bytes for others.

    What calibration chose needs no more memory than the model does: where there is not enough for both, or the model
    would have to be streamed because of it, prompts run on the kernels. DoesNotFitError for a backend that was asked
    for."""
    plan = planned(0)
    automatic = prefill == "auto"
    if automatic and not _leaves_room(plan, planned):
        kept = kept_calibration(gguf, plan.mode)
        if kept is not None and kept.choice != "kernels":
            events(
                Notice(f"prompts run on the kernels, not on {kept.choice} as calibrated: too little memory for both")
            )
        return None, plan
    wanted = wanted_backend(prefill, gguf, kernels, plan.mode, events)
    if wanted is None:
        return None, plan
    try:
        return wanted, planned(wanted.reserve_bytes(spec, plan))
    except DoesNotFitError as error:
        if not automatic:
            raise
        events(Notice(f"prompts run on the kernels, not on {wanted.choice.text} as calibrated: {error}"))
        return None, planned(0)  # the runtime's libraries are loaded now


def _leaves_room(plan: MemoryPlan, planned: Callable[[int], MemoryPlan]) -> bool:
    try:
        return planned(BACKEND_BYTES).mode == plan.mode
    except DoesNotFitError:
        return False


def attach_backend(
    wanted: WantedBackend,
    gguf: GgufFile,
    decoder: Decoder,
    tokenizer: Any,
    plan: MemoryPlan,
    *,
    events: EventSink = ignore,
) -> Callable[[], None]:
    """Give the decoder its prompt backend; returns what closes it. A backend that calibration chose and that cannot be
    opened leaves the kernels in charge, with a Notice; one that was asked for raises."""
    try:
        backend = _open(wanted.choice, gguf, decoder, tokenizer, plan, events)
    except (EdgerunError, OSError) as error:
        if wanted.calibration is None:
            raise
        events(Notice(f"prompts run on the kernels, not on {wanted.choice.text} as calibrated: {error}"))
        return lambda: None
    if wanted.calibration is not None:
        backend.least_tokens = max(1, wanted.calibration.least_tokens)
        backend.expert_rows = wanted.calibration.expert_rows or backend.expert_rows
    decoder.prompt_backend = backend
    return backend.close


def known_calibration(gguf: GgufFile, kernels: Kernels, mode: Mode, events: EventSink = ignore) -> Calibration | None:
    """What was measured for this model with these versions while its weights were where they are now; None: nothing.
    Loads onnxruntime only if there is any."""
    found = kept_calibration(gguf, mode, events)
    if found is None:
        return None
    from edgerun.prefill.calibrate import made_with

    return found if found.made_with == made_with(kernels, mode) else None


def kept_calibration(gguf: GgufFile, mode: Mode, events: EventSink = ignore) -> Calibration | None:
    """What was last measured for this model in this mode, whatever with; None: nothing, or the file was copied or
    changed since, or (with a Notice) something that others can have written."""
    if next(prefill_dir().glob("calibration-*.json"), None) is None:
        return None
    from edgerun.prefill.calibrate import calibration_path, load_calibration
    from edgerun.weights.identity import known_digest

    digest = known_digest(gguf, prefill_dir())
    if digest is None:
        return None
    try:
        return load_calibration(calibration_path(prefill_dir(), digest, mode))
    except UntrustedError as error:
        events(Notice(f"what was calibrated for this model is not used: {error}"))
        return None


def step_tokens_within(found: Calibration | None, tpot_s: float) -> int:
    """Tokens of a prompt that take no longer than another session may be kept waiting. UsageError when nobody knows."""
    if found is None:
        raise UsageError("how long a chunk of a prompt takes is not known yet: run `edgerun calibrate` for this model")
    return max(1, found.step_tokens(tpot_s))


def _open(
    choice: PromptChoice, gguf: GgufFile, decoder: Decoder, tokenizer: Any, plan: MemoryPlan, events: EventSink
) -> OnnxBackend:
    from edgerun.prefill.opening import calibration_ids, open_backend

    copy_bytes, left_bytes = choice.copy_bytes(decoder.spec), room_bytes(plan)
    if copy_bytes > left_bytes:
        raise DoesNotFitError(
            f"{choice.text} keeps its own copy of the weights, {format_size(copy_bytes)}, and there are "
            f"{format_size(left_bytes)} left: give it more --memory, or use --prefill kernels"
        )
    ids = calibration_ids(decoder.spec.vocab_size, None if tokenizer is None else tokenizer.encode)
    return open_backend(
        gguf,
        decoder,
        choice,
        ids,
        prefill_dir(),
        threads=decoder.kernels.threads,
        keep_layers=0 if decoder.store.fixed else 1,
        events=events,
    )


def room_bytes(plan: MemoryPlan) -> int:
    """What a streamed model leaves is nothing: it takes all there is for its cache."""
    return max(0, plan.budget_bytes - plan.total_bytes) if plan.mode == "resident" else 0
