"""One measurement: a prompt and what is decoded after it, with the fields of the llama.cpp baseline."""

from __future__ import annotations

import io
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.output import check_target, print_pairs, write_result
from edgerun.cli.progress import ProgressBars
from edgerun.cli.routing import recorded_routing
from edgerun.cli.stats import streaming_line
from edgerun.cli.trace_file import TraceFile
from edgerun.events import Progress

if TYPE_CHECKING:
    from edgerun.profiling.energy import EnergyMeter


@dataclass(frozen=True)
class Once:
    """What is measured. ids: "sequential" or a JSON file; logits: where they are saved."""

    prompt: int
    decode: int
    depth: int
    batch: int
    repetitions: int
    ids: str
    logits: Path | None
    limit_s: float
    warm_up: bool = False


def measure_once(
    path: Path,
    options: dict[str, Any],
    asked: Once,
    recording: tuple[Path | None, bool],
    meter: EnergyMeter | None,
    trace: TraceFile,
    bars: ProgressBars,
    *,
    as_json: bool,
) -> None:
    """Measure and print: a JSON object, or what people read of it. recording: where routing is recorded to, and whether
    over what is there."""
    from edgerun.cli.loading import kernels_of, load_model
    from edgerun.profiling import Case, bench_report, run_case
    from edgerun.profiling.rows import energy_fields

    fed = _ids(asked)
    case = Case(asked.prompt, len(fed) - asked.prompt - asked.depth, asked.depth, asked.batch)
    rows: list[Any] = []
    started = time.perf_counter()
    options = {**options, "context": options.get("context") or len(fed)}
    with ExitStack() as stack:
        llm = stack.enter_context(load_model(path, options))
        stack.enter_context(recorded_routing(llm, recording[0], overwrite=recording[1]))
        load_s = time.perf_counter() - started
        if asked.logits is not None:
            check_target(asked.logits, partial(_are_logits, llm.vocab_size), overwrite=recording[1])
        ids = [i % llm.vocab_size for i in fed] if asked.ids == "sequential" else llm.engine.encode(fed)
        kernels, plan, decoder = kernels_of(llm), llm.engine.plan, llm.engine.decoder
        stack.enter_context(trace.watch(llm))
        runs = []
        if asked.warm_up:
            run_case(decoder, Case(min(32, len(ids)), 0), ids[:32])
        for repetition in range(asked.repetitions):
            bars(Progress("bench", repetition, asked.repetitions, "repetitions"))
            keep = rows.append if asked.logits is not None and not repetition else None
            run = run_case(decoder, case, ids, limit_s=asked.limit_s, on_logits=keep, meter=meter)
            runs.append(run)
        bars(Progress("bench", asked.repetitions, asked.repetitions, "repetitions"))
    report = bench_report(runs, threads=kernels.threads, load_s=load_s)
    for phase, tokens in (("prompt", case.prompt), ("decode", case.decode)):
        spent = [each for run in runs if (each := getattr(run, f"{phase}_energy")) is not None]
        if spent:
            report |= energy_fields(phase, spent, tokens)
    if asked.logits is not None:
        _save(asked.logits, rows)
    assert plan is not None  # every loaded model has one
    accounts = {name: n_bytes for name, n_bytes in plan.accounts() if n_bytes}
    plan_fields = {"mode": plan.mode, "budget_bytes": plan.budget_bytes, "accounts_bytes": accounts}
    if as_json:
        click.echo(json.dumps({**report, "kernels": kernels.name, "memory": plan_fields}))
        return
    print_pairs({key: value for key, value in report.items() if value is not None})
    if "hit_rate" in report:
        click.echo(streaming_line(report))


def _ids(asked: Once) -> list[int]:
    from edgerun.cli.json_files import read_json
    from edgerun.errors import FormatError, NotFoundError, UsageError
    from edgerun.paths import kind_of, user_path

    if asked.ids == "sequential":
        if asked.prompt + asked.decode == 0:
            raise UsageError("nothing to measure: give -p or -n")
        return list(range(asked.depth + asked.prompt + asked.decode))
    path = user_path(asked.ids)
    if kind_of(path) != "file":
        raise NotFoundError(
            f"{asked.ids}: no such file; --ids takes `sequential` or a JSON file with a list of token ids"
        )
    given = read_json(path, "a list of token ids")
    if not isinstance(given, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in given):
        raise FormatError(f"{asked.ids}: must be a list of token ids")
    if len(given) < asked.depth + asked.prompt or not given:
        raise UsageError(f"{asked.ids} has {len(given)} ids, fewer than the prompt of {asked.depth + asked.prompt}")
    return given


def _are_logits(vocab: int, path: Path) -> bool:
    """Whether a file holds what --logits writes for a model of this vocabulary."""
    import numpy as np

    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except (OSError, ValueError):
        return False
    return dtype == np.float32 and len(shape) == 2 and shape[1] == vocab


def _save(path: Path, rows: list[Any]) -> None:
    import numpy as np

    content = io.BytesIO()
    np.save(content, np.stack(rows))
    write_result(path, content.getbuffer())
