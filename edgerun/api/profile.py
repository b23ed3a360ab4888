"""A model's profile on this machine: measured, set against the machine's limits, with what to change next."""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import DoesNotFitError, UsageError
from edgerun.events import EventSink, ignore
from edgerun.planning.costs import Operation, pass_operations
from edgerun.planning.rates import MOST_OTHERS, Rates
from edgerun.planning.roofline import Limits, roofline
from edgerun.units import format_size

if TYPE_CHECKING:
    from edgerun.api.llm import LLM
    from edgerun.models import Decoder
    from edgerun.planning import MemoryPlan
    from edgerun.planning.request import RequestPrediction
    from edgerun.profiling.energy import Energy, EnergyMeter
    from edgerun.profiling.recorded import Recorded
    from edgerun.profiling.session import Measured
    from edgerun.profiling.trace import Trace

_MORE_MEMORY = (1.5, 2.0, 3.0)  # times the budget, of which the speed is predicted
_METHOD = (
    "{repetitions} runs of a prompt and decoded tokens, ids 0, 1, 2, ..., from position 0; rates are means, decoding "
    "of the last two thirds of the tokens. Operations: one more run with a trace; their seconds are those of all "
    "threads by the number of threads. Limits and planned rates: by the machine's own rates, measured before the first "
    "run and after each; the cache's hits as they were measured"
)


def profile_model(
    llm: LLM,
    path: Path,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    repetitions: int,
    meter: EnergyMeter,
    command: str,
    events: EventSink = ignore,
) -> tuple[dict[str, Any], Trace]:
    """The report (`profiling.report`) of a loaded model, and the trace that its operations were timed by.
    UsageError for fewer than six tokens to decode or no prompt."""
    from edgerun.device import peak_bytes
    from edgerun.formats.gguf import open_gguf
    from edgerun.hub import show
    from edgerun.kernels import load_sizes
    from edgerun.planning.expert_hits import AnswerHits
    from edgerun.planning.missing_reads import missing_reads
    from edgerun.planning.request import predict_request
    from edgerun.profiling.advice import Facts, advise
    from edgerun.profiling.beside import RatesBeside
    from edgerun.profiling.cases import Case
    from edgerun.profiling.figures import mean
    from edgerun.profiling.recorded import record_request
    from edgerun.profiling.report import FORMAT
    from edgerun.profiling.session import DecoderEngine, run_session
    from edgerun.weights import make_catalog

    if prompt_tokens < 1 or decode_tokens < 6:
        raise UsageError("a profile needs a prompt, and at least 6 tokens to decode")
    engine = llm.engine
    decoder, plan = engine.decoder, engine.plan
    assert plan is not None  # every loaded model has one
    case = Case(prompt_tokens, decode_tokens)
    info, sizes = show(path), load_sizes(decoder.kernels.name)
    catalog = make_catalog(decoder.spec.tensors, decoder.spec.n_layers)
    seen: list[Rates] = []
    with open_gguf(path) as gguf:
        reads = missing_reads(gguf, catalog, packed=_is_packed(decoder))
    beside = RatesBeside(reads, catalog, kernels=decoder.kernels.name, threads=decoder.kernels.threads)
    with contextlib.closing(beside):
        (measured,) = run_session(
            [DecoderEngine(decoder, llm.vocab_size, meter=meter)],
            [case],
            repetitions=repetitions,
            between=lambda: seen.append(beside.measure()),
            events=events,
        )
    rates = seen[-1]
    recorded, trace = record_request(decoder, [i % llm.vocab_size for i in range(case.tokens)], prompt_tokens)
    token = list(pass_operations(catalog, decoder.spec, sizes, position=prompt_tokens + decode_tokens // 2))
    limits = _limits(rates, sum(each.memory_bytes for each in token))
    runs = measured.runs
    warm = [step for run in runs for step in run.warm_steps_s]
    steps = recorded.steps[len(recorded.steps) // 3 :]
    read_bytes = float(np.mean([step.read_bytes for step in steps]))
    hits = [step.hit_rate for step in steps if step.hit_rate is not None]
    prompt = [
        each
        for low in range(0, prompt_tokens, 256)
        for each in pass_operations(
            catalog, decoder.spec, sizes, rows=min(256, prompt_tokens - low), position=low, logits_rows=1
        )
    ]
    threads = decoder.kernels.threads
    count = len(recorded.steps)
    waiting_s = recorded.decode_lanes_s.get("waiting", 0.0) / count
    every_s = sum(step.seconds for step in recorded.steps) / count
    decode_rows = _operations(token, recorded.decode_kernels_s, threads, count, every_s, waiting_s, limits)
    near = [each["share_of_limit"] for each in decode_rows if each["share_of_limit"] is not None]
    streaming = {key: mean([run.streaming[key] for run in runs if key in run.streaming]) or 0.0 for key in
                 ("hit_rate", "disk_bytes_per_s", "read_bytes_per_token", "stall_s_per_token")}  # fmt: skip
    facts = Facts(
        mode=plan.mode,
        token_s=float(np.mean(warm)),
        stall_share=streaming["stall_s_per_token"] / float(np.mean(warm)),
        read_bytes=streaming["read_bytes_per_token"],
        hit_rate=streaming["hit_rate"],
        disk_reached=streaming["disk_bytes_per_s"],
        disk_rate=rates.disk_bytes_per_s,
        cached_share=plan.cached_share,
        near_limit=near[0] if near else 0.0,
        threads=threads,
        cores=_cores(),
        noisy=measured.noise.others_share > MOST_OTHERS,
        floor_bytes=plan.floor_bytes,
        budget_bytes=plan.budget_bytes,
        wanted=() if plan.mode == "resident" else tuple(_with_more(llm, path, plan, rates)),
    )
    planned = _planned(
        measured,
        seen,
        lambda rates: predict_request(
            catalog,
            decoder.spec,
            plan,
            sizes,
            rates,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            hits=AnswerHits(streaming["hit_rate"], streaming["hit_rate"]) if plan.mode == "experts" else None,
            packed=_is_packed(decoder),
            warm=True,  # by the repetitions before
        ),
    )
    report = {
        "format": FORMAT,
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "method": _METHOD.format(repetitions=repetitions),
        "model": {
            "name": info.name or path.stem,
            "file": path.name,
            "n_bytes": info.n_bytes,
            "type": info.quantisation,
        },
        "machine": _machine(decoder.kernels.name, threads, rates, limits),
        "noise": {**measured.noise.as_dict(), "text": str(measured.noise)},
        "energy_method": meter.method if meter.source is not None else f"unavailable: {meter.reason}",
        "memory": {
            "mode": plan.mode,
            "how": _how(plan),
            "budget_bytes": plan.budget_bytes,
            "peak_bytes": peak_bytes(),
            "peak_mib": peak_bytes() / (1 << 20),
            "accounts_bytes": {name: n_bytes for name, n_bytes in plan.accounts() if n_bytes},
        },
        "prompt": {
            "tokens": prompt_tokens,
            "tok_s": mean([run.prompt_tok_s or 0.0 for run in runs]),
            "ttft_ms": 1e3 * (mean([run.prompt_s for run in runs]) or 0.0),
            **planned["prompt"],
            "operations": _operations(
                prompt,
                recorded.prompt_kernels_s,
                threads,
                1,
                recorded.prompt_s,
                recorded.prompt_lanes_s.get("waiting", 0.0),
                limits,
            ),
            **_energy([run.prompt_energy for run in runs], prompt_tokens),
        },
        "decode": {
            "tokens": decode_tokens,
            "tok_s": mean([run.decode_tok_s or 0.0 for run in runs]),
            **planned["decode"],
            **{f"p{percent}_ms": 1e3 * float(np.percentile(warm, percent)) for percent in (50, 95, 99)},
            "operations": decode_rows,
            "memory_bytes": sum(each.memory_bytes for each in token),
            "read_bytes": read_bytes,
            "read_mb": read_bytes / 1e6,
            "hit_rate": float(np.mean(hits)) if hits else None,
            "stall_share": facts.stall_share,
            "steps": [asdict(step) for step in recorded.steps],
            "layers": sorted(
                ((name, s / len(recorded.steps)) for name, s in recorded.layers_s.items()), key=_layer_place
            ),
            "lanes": _lanes(recorded),
            "lost_spans": recorded.lost,
            **_energy([run.decode_energy for run in runs], decode_tokens),
        },
        "advice": asdict(advise(facts)),
    }
    return report, trace


def _planned(
    measured: Measured, seen: Sequence[Rates], predict: Callable[[Rates], RequestPrediction]
) -> dict[str, dict[str, float]]:
    """By phase: what was planned for each run by the rates just before and just after it, and what was measured:
    medians of the runs, since one that somebody disturbed tells nothing."""
    requests = [predict(rates) for rates in seen]
    found: dict[str, dict[str, float]] = {}
    for phase in ("prompt", "decode"):
        rates = [float(getattr(each, f"{phase}_tok_s") or 0.0) for each in requests]
        planned = [math.sqrt(rates[each] * rates[each + 1]) for each in measured.rounds]
        reached = [float(getattr(run, f"{phase}_tok_s") or 0.0) for run in measured.runs]
        found[phase] = {"planned_tok_s": statistics.median(planned), "median_tok_s": statistics.median(reached)}
    return found


def _operations(
    operations: Sequence[Operation],
    kernels_s: dict[str, float],
    threads: int,
    passes: int,
    total_s: float,
    waiting_s: float,
    limits: Limits,
) -> list[dict[str, Any]]:
    """What took the time of a pass: products by type and attention with their distance from the limit, then the
    rest. waiting_s: of a pass, for weights."""
    seconds = {name: s / threads / passes for name, s in kernels_s.items()}
    timed: list[tuple[Operation, float]] = []
    names: dict[str, list[Operation]] = {}
    for each in operations:
        kernel = f"matmul_{each.type.name.lower()}" if each.type is not None else "attention"
        names.setdefault(kernel, []).append(each)
    rows: list[dict[str, Any]] = []
    for kernel, some in names.items():
        took = sum(s for name, s in seconds.items() if name == kernel or name.startswith(f"{kernel}_"))
        type = some[0].type
        label = kernel if type is None else f"products {type.name}"
        alike = [(replace(each, name=label), took / len(some)) for each in some]
        timed += alike if took > 0 else []
    for point in roofline(timed, limits):
        rows.append({"name": point.name, "seconds": point.seconds, "share": point.seconds / total_s,
                     "share_of_limit": point.share_of_limit, "binds": point.binds, "flops": point.flops,
                     "memory_bytes": point.memory_bytes, "intensity": point.intensity})  # fmt: skip
    known = sum(row["seconds"] for row in rows)
    kernels = sum(seconds.values()) - known
    rest = {"norms, rotations, packing": kernels}
    rest |= {"waiting for weights": waiting_s} if waiting_s else {}
    rest["Python, and threads waiting for each other"] = total_s - known - sum(rest.values())
    for name, took in rest.items():
        rows.append({"name": name, "seconds": max(0.0, took), "share": max(0.0, took) / total_s, "share_of_limit": None,
                     "binds": None, "flops": 0.0, "memory_bytes": 0.0, "intensity": 0.0})  # fmt: skip
    return rows


def _is_packed(decoder: Decoder) -> bool:
    """Whether what is missing comes from a pack file."""
    return bool(getattr(decoder.store, "packed", False))


def _with_more(llm: LLM, path: Path, plan: MemoryPlan, rates: Rates) -> list[tuple[int, float]]:
    """(memory, predicted tokens/s) of larger budgets."""
    from edgerun.kernels import load_sizes
    from edgerun.planning import plan_memory
    from edgerun.planning.speed import predict_speed
    from edgerun.weights import make_catalog

    decoder = llm.engine.decoder
    catalog, sizes = make_catalog(decoder.spec.tensors, decoder.spec.n_layers), load_sizes(decoder.kernels.name)
    found: list[tuple[int, float]] = []
    for times in _MORE_MEMORY:
        budget = int(times * plan.budget_bytes) >> 20 << 20
        try:
            larger = plan_memory(
                path.name,
                catalog,
                decoder.spec,
                sizes,
                context=llm.engine.context,
                budget_bytes=budget,
                runtime_bytes=plan.runtime_bytes,
            )
        except DoesNotFitError:
            continue
        speed = predict_speed(catalog, decoder.spec, larger, sizes, rates, packed=_is_packed(decoder))
        found.append((budget, speed.decode_tok_s))
        if larger.mode == "resident":
            break
    return found


def _energy(spent: Sequence[Energy | None], tokens: int) -> dict[str, Any]:
    from edgerun.profiling.energy import describe
    from edgerun.profiling.figures import mean

    windows = [each for each in spent if each is not None]
    gross = [each.gross_j for each in windows if each.gross_j is not None]
    net = [each.net_j for each in windows if each.net_j is not None]
    if not windows or not gross:
        return {"energy": describe(windows[0]) if windows else "unavailable", "j_per_token": None}
    seconds = mean([each.seconds for each in windows]) or 0.0
    average = replace(windows[0], gross_j=mean(gross), net_j=mean(net), seconds=seconds)
    return {"energy": describe(average, per=tokens), "j_per_token": (average.gross_j or 0.0) / tokens}


def _lanes(recorded: Recorded) -> list[tuple[str, float]]:
    total = recorded.decode_lanes_s.get("step", 0.0) or 1.0
    return [(lane, seconds / total) for lane, seconds in sorted(recorded.decode_lanes_s.items()) if lane != "step"]


def _layer_place(item: tuple[str, float]) -> tuple[int, str]:
    number = item[0].rpartition(" ")[2]
    return (int(number) if number.isdecimal() else 1 << 30), item[0]


def _limits(rates: Rates, token_bytes: float) -> Limits:
    """Memory's own rate and the fastest products'; for a model that stays in the processor's cache, what comes out of
    that."""
    here = rates.for_weights(token_bytes)
    reading = max(each.decode_bytes_per_s for each in here.products.values())
    computing = max(each.prompt_ops_per_s for each in here.products.values())
    return Limits(max(reading, rates.memory_bytes_per_s or 0.0), computing)


def _cores() -> int:
    from edgerun.device import physical_cores

    return physical_cores()


def _how(plan: MemoryPlan) -> str:
    if plan.mode == "resident":
        return "all in memory"
    if plan.mode == "experts":
        return f"{plan.slots} of {plan.all_experts} experts cached, {format_size(plan.cache_bytes)}"
    return f"{plan.pinned} of {plan.layers} layers kept, the others streamed"


def _machine(kernels: str, threads: int, rates: Rates, limits: Limits) -> dict[str, Any]:
    from edgerun import __version__
    from edgerun.device import cpu_name

    return {
        "processor": cpu_name(),
        "system": platform.system(),
        "cores": _cores(),
        "threads": threads,
        "kernels": kernels,
        "bandwidth_gb_s": limits.bandwidth_bytes_per_s / 1e9,
        "peak_gop_s": limits.peak_ops_per_s / 1e9,
        "disk_gb_s": rates.disk_bytes_per_s / 1e9,
        "edgerun": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
