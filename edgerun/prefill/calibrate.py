"""What a prompt costs on each backend of this machine, measured, and which of them to use.

Two layers of the model itself are built for every candidate and run inside a real prompt, the other layers by our
kernels: their time gives the whole model's, and what they change in the logits its error (errors of layers add up as
independent ones do). The kernels are measured with the whole model. A backend is chosen if it fits in memory, its
error is small enough, and it is at least a tenth better.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from edgerun.errors import DeviceError, UnsupportedError, UntrustedError, UsageError
from edgerun.events import EventSink, Progress, SpanSink, ignore
from edgerun.formats.gguf import GgufFile
from edgerun.kernels.interface import F32, Kernels
from edgerun.models import Decoder
from edgerun.models.prompt import PromptBackend, PromptWalk, on_backend
from edgerun.new_files import temporary_folder
from edgerun.paths import read_kept, write_kept
from edgerun.prefill.backend import OnnxBackend
from edgerun.prefill.build import BuiltLayer, BuiltModel
from edgerun.prefill.choice import KERNELS, PromptChoice, fit_scheme
from edgerun.prefill.expert_rows import least_expert_rows
from edgerun.prefill.hadamard import check_rotatable, rotate
from edgerun.prefill.ladder import LADDER
from edgerun.prefill.layer_files import write_layer
from edgerun.prefill.observe import KernelLayers
from edgerun.prefill.profile import profile_ranges
from edgerun.prefill.providers import Device, find_devices, runtime
from edgerun.prefill.ranges import LayerRanges
from edgerun.prefill.schedule import Timeline
from edgerun.prefill.schemes import scheme_named
from edgerun.prefill.segments import check_supported
from edgerun.prefill.sessions import Sessions
from edgerun.units import format_size
from edgerun.weights.store import Mode

Objective = Literal["auto", "latency", "energy"]
LEAST_GAIN = 1.1
MOST_ERROR = 0.05  # from the kernels, which round activations too
_TURNS = 2
_REFUSALS = (UnsupportedError, DeviceError)


@dataclass(frozen=True)
class Row:
    """One backend and number of tokens. `prompt_s`: of the whole model; `error`: relative change of the last logits
    from the kernels', for a whole model; `weights_bytes`: its own copy on disk, `copied`: also in memory; `refused`:
    why there are no numbers; `expert_rows`: rows of a wave from which an expert is faster there than on the kernels;
    `layer_s`: what each part of a layer takes there, and on the CPU beside it, by the names of its tasks."""

    backend: str
    tokens: int
    prompt_s: float = math.inf
    joules: float | None = None
    error: float = 0.0
    weights_bytes: int = 0
    copied: bool = False
    refused: str = ""
    expert_rows: int = 0
    layer_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """`made_with`: versions and kernels; another machine or version measures anew. `choice`: a backend's name;
    `least_tokens`: of prompts worth giving to it."""

    made_with: dict[str, str]
    rows: tuple[Row, ...]
    choice: str
    why: str
    least_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON: no time is null."""
        rows = [{**asdict(row), "prompt_s": row.prompt_s if math.isfinite(row.prompt_s) else None} for row in self.rows]
        return {**asdict(self), "rows": rows}

    @property
    def expert_rows(self) -> int:
        """Of the choice; 0: its experts run on the kernels."""
        return max((row.expert_rows for row in self.rows if row.backend == self.choice), default=0)

    def step_tokens(self, tpot_s: float) -> int:
        """The largest measured chunk of the chosen backend that takes no longer; 0: none does."""
        fitting = [row.tokens for row in self.rows if row.backend == self.choice and row.prompt_s <= tpot_s]
        return max(fitting, default=0)


class JouleMeter(Protocol):
    """What counts joules (`profiling.energy.EnergyMeter`). reason: why there are none."""

    reason: str

    def joules(self) -> float | None:
        """Since the last call; None where nothing counts."""
        ...


class _Mixed:
    """A backend for some layers, our kernels for the others; counts the former's seconds and joules."""

    least_tokens = 1
    wave_tokens = max(LADDER)

    def __init__(self, backend: OnnxBackend, layers: Sequence[int], meter: JouleMeter) -> None:
        self._meter = meter
        self._backend = backend
        self._kernels = KernelLayers(lambda layer, product, inner, results: None)
        self._layers = set(layers)
        self.name = backend.name
        self.seconds = 0.0
        self.joules: float | None = None
        backend.timeline = Timeline(cost=backend.timeline.cost)

    @property
    def layer_s(self) -> dict[str, float]:
        """Of the last prompt, by kinds of tasks."""
        return {kind: seconds / len(self._layers) for kind, seconds in self._backend.timeline.by_kind.items()}

    def watch(self, watcher: SpanSink | None) -> None:
        self._backend.watch(watcher)

    def run(self, walk: PromptWalk) -> None:
        for layer in range(walk.spec.n_layers):
            one = range(layer, layer + 1)
            if layer not in self._layers:
                self._kernels.run_layers(walk, one)
                continue
            turned = self._backend.built.rotated
            if turned:
                walk.x[:] = rotate(walk.x)
            self._meter.joules()
            began = time.perf_counter()
            self._backend.run_layers(walk, one)
            self.seconds += time.perf_counter() - began
            spent = self._meter.joules()
            if turned:
                walk.x[:] = rotate(walk.x)
            if spent is not None:
                self.joules = (self.joules or 0.0) + spent


def calibrate(
    gguf: GgufFile,
    decoder: Decoder,
    ids: Sequence[int],
    *,
    threads: int,
    room_bytes: int,
    meter: JouleMeter,
    objective: Objective = "auto",
    most_error: float = MOST_ERROR,
    candidates: Sequence[PromptChoice] | None = None,
    events: EventSink = ignore,
) -> Calibration:
    """Measure `candidates` (default: every device here with each scheme worth trying) and choose. `room_bytes`: memory
    that weights of a backend may take. `meter`: of the whole processor. What a model or a backend refuses is a result;
    what fails otherwise is none, and is raised: ReadError, OSError or DoesNotFitError when the machine does not work (a
    full disk), Cancelled. UsageError where energy is asked for and nothing counts it."""
    if objective not in get_args(Objective):
        raise UsageError(f"the objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
    if objective == "energy" and meter.joules() is None:
        raise UsageError(f"cannot choose by energy: {meter.reason}")
    if len(ids) < max(LADDER):
        ids = [ids[i % len(ids)] for i in range(max(LADDER))]
    if candidates is None:
        candidates = _candidates(find_devices()[0], experts=bool(decoder.spec.n_experts))
    events(Progress("calibrate", 0, len(candidates) + 1, "backends"))
    rows, want = _kernels(decoder, ids, meter)
    try:
        check_supported(decoder.spec)
        sample = sorted({0, decoder.spec.n_layers // 2})

        @cache
        def ranges_for(shadow: bool, rotated: bool, experts: bool) -> list[LayerRanges]:
            return profile_ranges(decoder, ids, shadow=shadow, rotated=rotated, experts=experts)

        for done, candidate in enumerate(candidates):
            events(Progress("calibrate", done + 1, len(candidates) + 1, "backends"))
            copy_bytes = candidate.copy_bytes(decoder.spec)
            if candidate.experts and copy_bytes > room_bytes:
                reason = f"with experts it keeps {format_size(copy_bytes)} more, and {format_size(room_bytes)} are left"
                rows += [Row(candidate.text, max(LADDER), refused=reason)]
                continue
            rows += _candidate(gguf, decoder, candidate, ids, want, sample, ranges_for, threads, meter)
    except _REFUSALS as error:
        rows += [Row(each.text, max(LADDER), refused=str(error)) for each in candidates]
    events(Progress("calibrate", len(candidates) + 1, len(candidates) + 1, "backends"))
    choice, why, least = _choose(rows, room_bytes, objective, most_error)
    return Calibration(made_with(decoder.kernels, decoder.store.mode), tuple(rows), choice, why, least)


def made_with(kernels: Kernels, mode: Mode) -> dict[str, str]:
    """What a calibration holds for. `mode`: where the weights are; what streams them is measured while it does."""
    devices, _ = find_devices()
    return {
        "onnxruntime": str(runtime().__version__),
        "kernels": f"{kernels.name} x{kernels.threads}",
        "memory": mode,
        **{device.name: device.version for device in devices},
    }


def calibration_path(root: Path, digest: str, mode: Mode) -> Path:
    """Where the calibration of a model with this content (`weights.identity.content_digest`) is kept: one for each
    place where its weights can be."""
    return root / f"calibration-{digest}-{mode}.json"


def save_calibration(path: Path, found: Calibration) -> None:
    """Atomically. OSError when the folder cannot be written."""
    write_kept(path, [json.dumps(found.as_dict(), indent=1).encode()])


def load_calibration(path: Path) -> Calibration | None:
    """What `save_calibration` wrote; None when there is nothing, or nothing that makes sense. UntrustedError for one
    that others can have written."""
    try:
        said = json.loads(read_kept(path))
        rows = tuple(_row(each) for each in said["rows"])
        return Calibration(
            {str(k): str(v) for k, v in said["made_with"].items()},
            rows,
            str(said["choice"]),
            str(said["why"]),
            int(said["least_tokens"]),
        )
    except UntrustedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _row(said: dict[str, Any]) -> Row:
    seconds, joules = said["prompt_s"], said["joules"]
    return Row(
        str(said["backend"]),
        int(said["tokens"]),
        math.inf if seconds is None else float(seconds),
        None if joules is None else float(joules),
        float(said["error"]),
        int(said["weights_bytes"]),
        bool(said["copied"]),
        str(said["refused"]),
        int(said["expert_rows"]),
        {str(kind): float(seconds) for kind, seconds in said["layer_s"].items()},
    )


def _candidates(devices: Sequence[Device], *, experts: bool) -> list[PromptChoice]:
    """Every device with its schemes, and the best of these for experts too where there are any."""
    return [
        PromptChoice(device, fit_scheme(device.kind, scheme_named(scheme)), experts=also)
        for device in devices
        if not device.compiles_only
        for scheme in device.kind.schemes
        for also in ((False, True) if experts and scheme == device.kind.schemes[0] else (False,))
    ]


def _kernels(decoder: Decoder, ids: Sequence[int], meter: JouleMeter) -> tuple[list[Row], F32]:
    rows = []
    with on_backend(decoder, None):
        for tokens in LADDER:
            seconds, joules, logits = _timed(decoder, ids[:tokens], meter)
            rows.append(Row(KERNELS, tokens, seconds, joules))
    return rows, logits


def _timed(decoder: Decoder, ids: Sequence[int], meter: JouleMeter) -> tuple[float, float | None, F32]:
    best, joules = math.inf, None
    for _ in range(_TURNS):
        cache = decoder.new_cache(len(ids))
        meter.joules()
        began = time.perf_counter()
        logits = decoder.forward(ids, cache)
        seconds = time.perf_counter() - began
        spent = meter.joules()
        if seconds < best:
            best, joules = seconds, spent
    assert logits is not None  # the last ones were asked for
    return best, joules, logits


def _candidate(
    gguf: GgufFile,
    decoder: Decoder,
    choice: PromptChoice,
    ids: Sequence[int],
    want: F32,
    sample: Sequence[int],
    ranges_for: Callable[[bool, bool, bool], list[LayerRanges]],
    threads: int,
    meter: JouleMeter,
) -> list[Row]:
    spec, kind = decoder.spec, choice.device.kind
    sizes = LADDER if kind.static else (0,)
    copied = choice.device.copies_weights
    rows = []
    with temporary_folder() as folder, contextlib.ExitStack() as closing:
        try:
            if choice.rotated:
                check_rotatable(spec)
            ranges, rotated = [LayerRanges()] * spec.n_layers, choice.rotated
            if choice.scheme.quantises_activations:
                ranges = ranges_for(choice.shadow, rotated, choice.experts)
            write = partial(write_layer, folder, gguf, spec, rotated=rotated, experts=choice.experts)
            layers = [BuiltLayer(ranges[i], *write(i, choice.scheme, ranges[i], sizes)) for i in sample]
            by_layer = dict(zip(sample, layers, strict=True))
            built = BuiltModel(
                folder,
                choice.scheme,
                sizes,
                rotated,
                tuple(by_layer.get(i, layers[-1]) for i in range(spec.n_layers)),
                choice.experts,
            )
            sessions = closing.enter_context(contextlib.closing(Sessions(built, choice.device, threads=threads)))
            backend = OnnxBackend(spec, built, sessions)
            least = 0
            if choice.experts:
                least = backend.expert_rows = least_expert_rows(decoder, sessions, sample[0], sizes, threads)
            scale = spec.n_layers / len(sample)
            for tokens in LADDER:
                best, joules, logits, layer_s = math.inf, None, want, dict[str, float]()
                for _ in range(_TURNS + 1):  # the first one opens sessions
                    mixed = _Mixed(backend, sample, meter)
                    logits = _with(decoder, mixed, ids[:tokens])
                    if mixed.seconds < best:
                        best, joules, layer_s = mixed.seconds, mixed.joules, mixed.layer_s
                error = 0.0
                if tokens == max(LADDER):
                    error = float(np.linalg.norm(logits - want) / np.linalg.norm(want)) * math.sqrt(scale)
                whole = None if joules is None else joules * scale
                n_bytes = int(scale * sum(layer.n_bytes for layer in layers))
                row = Row(choice.text, tokens, best * scale, whole, error, n_bytes, copied, "", least, layer_s)
                rows.append(row)
        except _REFUSALS as refusal:
            rows = [Row(choice.text, max(LADDER), copied=copied, refused=str(refusal))]
    return rows


def _with(decoder: Decoder, backend: PromptBackend, ids: Sequence[int]) -> F32:
    with on_backend(decoder, backend):
        logits = decoder.forward(ids, decoder.new_cache(len(ids)))
    assert logits is not None  # the last ones were asked for
    return logits


def _choose(rows: Sequence[Row], room_bytes: int, objective: Objective, most_error: float) -> tuple[str, str, int]:
    """(choice, why, the least tokens of a prompt that gain by it)."""
    largest = max(LADDER)
    energy = objective == "energy"

    def price(row: Row) -> float:
        return row.joules if energy and row.joules is not None else row.prompt_s

    unit = "J" if energy else "s"
    mine = {row.tokens: row for row in rows if row.backend == KERNELS}
    possible = [
        row
        for row in rows
        if row.tokens == largest
        and row.backend != KERNELS
        and not row.refused
        and row.error <= most_error
        and not (row.copied and row.weights_bytes > room_bytes)
    ]
    if not possible:
        return KERNELS, f"no other backend runs this model with an error of at most {most_error:g} in this memory", 0
    best = min(possible, key=price)
    said = (
        f"{best.backend} takes {price(best):.2f} {unit} for {largest} tokens, kernels {price(mine[largest]):.2f} {unit}"
    )
    if price(best) * LEAST_GAIN > price(mine[largest]):
        return KERNELS, f"{said}: not a tenth better", 0
    least = largest
    for tokens in sorted(LADDER, reverse=True):
        row = next(r for r in rows if r.backend == best.backend and r.tokens == tokens)
        if price(row) > price(mine[tokens]):
            break
        least = tokens
    return best.backend, f"{said}; error {best.error:.3f}", least // 2 + 1
