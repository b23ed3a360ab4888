"""Which prompt backend is best for a model on this machine: measured, and kept for `prefill="auto"`."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from edgerun.api.loading import find_model, load_engine, model_path
from edgerun.api.prefill import known_calibration, prefill_dir, room_bytes
from edgerun.errors import DoesNotFitError, EdgerunError
from edgerun.new_files import one_at_a_time
from edgerun.options import (
    MACHINE_NAMES,
    Choice,
    Flag,
    MachineKeywords,
    Number,
    Text,
    Texts,
    load_options,
)

if TYPE_CHECKING:
    from edgerun.prefill.calibrate import Calibration

OBJECTIVES = ("auto", "latency", "energy")


def calibrate_model(
    model: str | Path,
    *,
    objective: Literal["auto", "latency", "energy"] = "auto",
    most_error: float | None = None,
    backends: Sequence[str] = (),
    again: bool = True,
    **options: Unpack[MachineKeywords],
) -> Calibration:
    """Measure the prompt backends of this machine with a model, keep the result, and return it: `prefill="auto"` goes
    by it from then on. `backends`: only these; `most_error`: relative change of the logits that is accepted; `again`
    False: nothing is measured if there is such a result already. Other options as of `LLM`. UnsupportedError when
    onnxruntime is not installed. When the machine fails (a full disk: DoesNotFitError), or another process measures the
    same model, an error says so and nothing is kept."""
    from edgerun.formats.gguf import open_gguf
    from edgerun.models import load_spec
    from edgerun.prefill.calibrate import MOST_ERROR, calibrate, calibration_path, save_calibration
    from edgerun.prefill.choice import parse_choice
    from edgerun.prefill.opening import calibration_ids
    from edgerun.prefill.providers import runtime
    from edgerun.profiling.energy import find_meter
    from edgerun.weights.identity import content_digest

    given = load_options(options, MACHINE_NAMES)
    Choice(OBJECTIVES).check("objective", objective)
    error_limit = Number(0, words=(None,)).check("most_error", most_error)
    names = [Text().check("backends", text) for text in Texts().check("backends", backends)]
    anew = Flag().check("again", again)
    model_path(model)  # refuses what is no name
    runtime()
    chosen = [parse_choice(text) for text in names] or None
    path = find_model(model, given.events)
    with open_gguf(path) as gguf:
        context = min(512, load_spec(gguf).context_length)
    engine, path, release = load_engine(path, replace(given, prefill="kernels", context=context))
    try:
        with open_gguf(path) as gguf:
            decoder = engine.decoder
            if not anew and (kept := known_calibration(gguf, decoder.kernels, decoder.store.mode)) is not None:
                return kept
            digest = content_digest(gguf, prefill_dir(), given.events)
            kept_at = calibration_path(prefill_dir(), digest, decoder.store.mode)
            with (
                _failures_named(),
                one_at_a_time(kept_at, lambda: None, wait_s=0),
                contextlib.closing(find_meter()) as meter,
            ):
                found = calibrate(
                    gguf,
                    decoder,
                    calibration_ids(engine.vocab_size, engine.tokenizer.encode if engine.has_tokenizer else None),
                    threads=decoder.kernels.threads,
                    room_bytes=room_bytes(engine.plan),
                    meter=meter,
                    objective=objective,
                    most_error=MOST_ERROR if error_limit is None else error_limit,
                    candidates=chosen,
                    events=given.events,
                )
                save_calibration(kept_at, found)
    finally:
        release()
    return found


@contextlib.contextmanager
def _failures_named() -> Iterator[None]:
    """What the system refuses while calibrating, as errors of ours."""
    try:
        yield
    except EdgerunError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DoesNotFitError(
                f"calibrating writes two layers at a time to {tempfile.gettempdir()}, and the disk is full "
                f"({error}); free some, or set TMPDIR to another. Nothing was kept"
            ) from error
        raise EdgerunError(f"calibrating failed: {error}. Nothing was kept") from error
