"""Prompt backends for a loaded model: what the user chose, or what was measured to be best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgerun import paths
from edgerun.errors import DoesNotFitError, EdgerunError, UsageError
from edgerun.events import EventSink, Notice, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.models import Decoder
from edgerun.planning import MemoryPlan
from edgerun.units import format_size

if TYPE_CHECKING:
    from edgerun.prefill.backend import OnnxBackend
    from edgerun.prefill.calibrate import Calibration


def prefill_dir() -> Path:
    """Graphs, ranges and calibrations."""
    return paths.cache_dir() / "prefill"


def attach_backend(
    prefill: str,
    gguf: GgufFile,
    decoder: Decoder,
    tokenizer: Any,
    plan: MemoryPlan,
    *,
    events: EventSink = ignore,
) -> Callable[[], None] | None:
    """Give the decoder the prompt backend that `prefill` names; returns what closes it, or None for our kernels.

    "auto": what `calibrate_model` chose for this model on this machine; where it was not asked, the kernels, and where
    its choice cannot be opened any more, the kernels too, with a Notice. Anything else that cannot be used raises."""
    if prefill == "kernels":
        return None
    auto, wanted, found = prefill == "auto", prefill, None
    try:
        if auto:
            found = known_calibration(gguf, decoder)
            if found is None or found.choice == "kernels":
                return None
            wanted = found.choice
        backend = _open(wanted, gguf, decoder, tokenizer, plan, events)
    except (EdgerunError, OSError) as error:
        if not auto:
            raise
        on = "" if found is None else f" on {wanted}"
        events(Notice(f"prompts run on the kernels, not{on} as calibrated: {error}"))
        return None
    if found is not None:
        backend.least_tokens = max(1, found.least_tokens)
    decoder.prompt_backend = backend
    return backend.close


def known_calibration(gguf: GgufFile, decoder: Decoder) -> Calibration | None:
    """What was measured for this model with these versions; None: nothing. Loads onnxruntime only if there is any."""
    if next(prefill_dir().glob("calibration-*.json"), None) is None:
        return None
    from edgerun.prefill.calibrate import calibration_path, load_calibration, made_with

    kept = calibration_path(prefill_dir(), gguf)
    if not kept.is_file():
        return None
    found = load_calibration(kept)
    return found if found is not None and found.made_with == made_with(decoder) else None


def calibrate_model(
    model: str | Path,
    *,
    memory: int | str = "auto",
    threads: int | Literal["auto"] = "auto",
    kernels: str = "auto",
    objective: Literal["auto", "latency", "energy"] = "auto",
    most_error: float | None = None,
    backends: tuple[str, ...] = (),
    again: bool = True,
    events: EventSink = ignore,
) -> Calibration:
    """Measure the prompt backends of this machine with a model, keep the result, and return it: `prefill="auto"` goes
    by it from then on. `backends`: only these; `most_error`: relative change of the logits that is accepted; `again`
    False: nothing is measured if there is such a result already. Other options as of `LLM`. UnsupportedError when
    onnxruntime is not installed."""
    from edgerun.api.loading import find_model, load_engine
    from edgerun.formats.gguf import open_gguf
    from edgerun.models import load_spec
    from edgerun.prefill.calibrate import MOST_ERROR, calibrate, calibration_path, save_calibration
    from edgerun.prefill.choice import parse_choice
    from edgerun.prefill.opening import calibration_ids
    from edgerun.prefill.providers import runtime

    runtime()
    chosen = [parse_choice(text) for text in backends] or None
    path = find_model(model, events)
    with open_gguf(path) as gguf:
        context = min(512, load_spec(gguf).context_length)
    engine, path, release = load_engine(
        path, memory=memory, threads=threads, kernels=kernels, prefill="kernels", context=context, events=events
    )
    try:
        with open_gguf(path) as gguf:
            decoder: Decoder = engine.decoder  # type: ignore[assignment]
            if not again and (kept := known_calibration(gguf, decoder)) is not None:
                return kept
            found = calibrate(
                gguf,
                decoder,
                calibration_ids(engine.vocab_size, engine.encode if engine.has_tokenizer else None),
                threads=decoder.kernels.threads,
                room_bytes=_room_bytes(engine.plan),
                objective=objective,
                most_error=MOST_ERROR if most_error is None else most_error,
                candidates=chosen,
                events=events,
            )
            save_calibration(calibration_path(prefill_dir(), gguf), found)
    finally:
        release()
    return found


def step_tokens_within(found: Calibration | None, tpot_s: float) -> int:
    """Tokens of a prompt that take no longer than another session may be kept waiting. UsageError when nobody knows."""
    if found is None:
        raise UsageError("how long a chunk of a prompt takes is not known yet: run `edgerun calibrate` for this model")
    return max(2, found.step_tokens(tpot_s))


def _open(
    wanted: str, gguf: GgufFile, decoder: Decoder, tokenizer: Any, plan: MemoryPlan, events: EventSink
) -> OnnxBackend:
    from edgerun.prefill.choice import parse_choice
    from edgerun.prefill.opening import calibration_ids, open_backend
    from edgerun.prefill.stages import weights_bytes

    choice = parse_choice(wanted)
    copy_bytes, room_bytes = weights_bytes(decoder.spec, choice.scheme), _room_bytes(plan)
    if choice.device.copies_weights and copy_bytes > room_bytes:
        raise DoesNotFitError(
            f"{wanted} keeps its own copy of the weights, {format_size(copy_bytes)}, and {format_size(room_bytes)} are "
            "left: give it more --memory, or use --prefill kernels"
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


def _room_bytes(plan: MemoryPlan) -> int:
    """What a streamed model leaves is nothing: it takes all there is for its cache."""
    return max(0, plan.budget_bytes - plan.total_bytes) if plan.mode == "resident" else 0
