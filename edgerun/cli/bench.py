"""`edgerun bench`."""

from __future__ import annotations

import io
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from edgerun.cli.options import (
    checked_option,
    json_option,
    loading_from,
    model_options,
    prompt_options,
    streaming_options,
)
from edgerun.cli.output import check_target, print_table, write_result
from edgerun.cli.progress import ProgressBars
from edgerun.cli.routing import recorded_routing
from edgerun.cli.stats import streaming_line
from edgerun.options import Number, Whole

_TOKENS = Whole(0, 1 << 20)


@click.command(short_help="Measure how fast a model is.")
@click.argument("model", default="default")
@checked_option("-p", "--prompt", name="prompt", kind=_TOKENS, default="256", show_default=True, help="Prompt tokens.")
@checked_option(
    "-n", "--decode", name="decode", kind=_TOKENS, default="48", show_default=True, help="Tokens to decode."
)
@checked_option(
    "-r",
    "--repetitions",
    name="repetitions",
    kind=Whole(1, 1000),
    default="3",
    show_default=True,
    help="Runs of each.",
)
@click.option(
    "--ids",
    default="sequential",
    show_default=True,
    metavar="sequential|FILE.json",
    help="Token ids to feed: 0, 1, 2, ... or a JSON list.",
)
@click.option("--logits", type=click.Path(path_type=Path), help="Save the logits after every fed token (.npy, f32).")
@checked_option(
    "--limit-s",
    name="limit_s",
    kind=Number(0, above=True),
    default="300.0",
    show_default=True,
    help="Stop decoding after so many seconds.",
)
@model_options
@streaming_options
@prompt_options
@json_option
def command(
    model: str,
    prompt: int,
    decode: int,
    repetitions: int,
    ids: str,
    logits: Path | None,
    limit_s: float,
    record_routing: Path | None,
    overwrite: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure MODEL: a prompt of -p tokens, then -n tokens fed one at a time; nothing is sampled.

    Decoding counts the last two thirds of the tokens. The JSON form has the same fields as the llama.cpp
    baseline, rates being means over the repetitions.
    """
    from edgerun.cli.loading import find_model, kernels_of, load_model
    from edgerun.hub import show
    from edgerun.profiling import bench_report, run_bench

    fed = _ids(ids, prompt, decode)
    rows: list[Any] = []
    with ProgressBars() as bars:
        path = find_model(model, bars)
        started = time.perf_counter()
        options = loading_from({**loading, "context": loading["context"] or len(fed)}, bars)
        with load_model(path, options) as llm, recorded_routing(llm, record_routing, overwrite=overwrite):
            load_s = time.perf_counter() - started
            if logits is not None:
                check_target(logits, partial(_are_logits, llm.vocab_size), overwrite=overwrite)
            chosen, plan = kernels_of(llm), llm.engine.plan
            runs = run_bench(
                llm.engine.decoder,
                [i % llm.vocab_size for i in fed] if ids == "sequential" else llm.engine.encode(fed),
                prompt,
                repetitions=repetitions,
                limit_s=limit_s,
                on_logits=rows.append if logits is not None else None,
                events=bars,
            )
    report = bench_report(runs, threads=chosen.threads, load_s=load_s)
    if logits is not None:
        _save(logits, rows)
    if as_json:
        accounts = {name: n_bytes for name, n_bytes in plan.accounts() if n_bytes}
        plan_fields = {"mode": plan.mode, "budget_bytes": plan.budget_bytes, "accounts_bytes": accounts}
        click.echo(json.dumps({**report, "kernels": chosen.name, "memory": plan_fields}))
        return
    info = show(path)
    tests = (
        (f"pp{prompt}", report["prompt_tok_s"], report["prompt_tok_s_sd"]),
        (f"tg{report['decode_tokens']}", report["decode_tok_s"], report["decode_tok_s_sd"]),
    )
    _print_report(path, info, chosen, tests, report)
    if "hit_rate" in report:
        click.echo(streaming_line(report))


def _print_report(path: Path, info: Any, kernels: Any, tests: Any, report: dict[str, Any]) -> None:
    from edgerun.units import format_size

    rows = [
        (
            info.name or path.stem,
            info.quantisation,
            format_size(info.n_bytes),
            kernels.name,
            str(kernels.threads),
            test,
            f"{rate:.2f} ± {deviation or 0:.2f}",
        )
        for test, rate, deviation in tests
        if rate is not None
    ]
    print_table(("MODEL", "TYPE", "SIZE", "KERNELS", "THREADS", "TEST", "TOKENS/S"), rows, right=("SIZE", "TOKENS/S"))
    click.echo(
        f"loaded in {report['load_s']} s, peak memory {report['max_rss_mib']} MiB"
        + ("" if report["decode_p50_ms"] is None else f", token p50 {report['decode_p50_ms']} ms")
        + ("" if report["decode_p95_ms"] is None else f", p95 {report['decode_p95_ms']} ms")
    )


def _ids(ids: str, prompt: int, decode: int) -> list[int]:
    from edgerun.cli.json_files import read_json
    from edgerun.errors import FormatError, NotFoundError, UsageError
    from edgerun.paths import kind_of, user_path

    if ids == "sequential":
        if prompt + decode == 0:
            raise UsageError("nothing to measure: give -p or -n")
        return list(range(prompt + decode))
    path = user_path(ids)
    if kind_of(path) != "file":
        raise NotFoundError(f"{ids}: no such file; --ids takes `sequential` or a JSON file with a list of token ids")
    given = read_json(path, "a list of token ids")
    if not isinstance(given, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in given):
        raise FormatError(f"{ids}: must be a list of token ids")
    if len(given) < prompt:
        raise UsageError(f"{ids} has {len(given)} ids, fewer than the prompt of {prompt}")
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
