"""`edgerun bench`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.bench_engines import ENGINES, Peers, chosen_peers, open_engines
from edgerun.cli.options import (
    checked_option,
    json_option,
    loading_from,
    model_options_but_threads,
    power_options,
    prompt_options,
    streaming_options,
    trace_option,
)
from edgerun.cli.output import note
from edgerun.cli.progress import ProgressBars
from edgerun.cli.routing import recorded_routing
from edgerun.cli.stats import streaming_line
from edgerun.cli.trace_file import TraceFile
from edgerun.options import Number, Whole

if TYPE_CHECKING:
    from edgerun.profiling.cases import Case
    from edgerun.profiling.energy import EnergyMeter
    from edgerun.profiling.session import Measured

_LIST = "N,N-M,N-M*K"


@click.command(short_help="Measure how fast a model is.")
@click.argument("model", default="default")
@click.option("-p", "--prompt", default="256", show_default=True, metavar=_LIST, help="Prompt tokens.")
@click.option("-n", "--decode", default="48", show_default=True, metavar=_LIST, help="Tokens to decode.")
@click.option("-pg", "pairs", multiple=True, metavar="P,N", help="A prompt and what is decoded after it, as one test.")
@click.option(
    "-d", "--depth", default="0", metavar=_LIST, help="Tokens that are there already, not measured.  [default: 0]"
)
@click.option("-b", "--batch", default="0", metavar=_LIST, help="Tokens of a prompt in one call.  [default: all]")
@click.option(
    "-t",
    "--threads",
    default="auto",
    metavar=_LIST,
    envvar="EDGERUN_THREADS",
    show_envvar=True,
    help="Threads that compute.  [default: the physical cores]",
)
@checked_option(
    "-r", "--repetitions", name="repetitions", kind=Whole(1, 1000), default="3", show_default=True, help="Runs of each."
)
@click.option(
    "--warmup/--no-warmup", "warm_up", default=None, help="Run something short first.  [default: yes; no with --json]"
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(("md", "csv", "json", "jsonl", "sql")),
    default="md",
    show_default=True,
    help="How results are printed: all fields in all forms but md.",
)
@click.option(
    "--engine",
    default="edgerun",
    show_default=True,
    metavar=",".join(ENGINES),
    help="Who is measured, in turns, the first compared with the others.",
)
@click.option("--endpoint", metavar="URL", help="A server of OpenAI's kind (http://127.0.0.1:8080/v1) to compare with.")
@click.option("--peer-model", metavar="NAME", help="The model's name there, or at ollama.  [default: the first]")
@click.option(
    "--llamacpp-python", metavar="PATH", help="An interpreter that has llama-cpp-python.  [default: this one]"
)
@click.option(
    "--energy",
    metavar="METER",
    is_flag=False,
    flag_value="auto",
    help="Count joules: auto, rapl, battery, ina, nvml, powermetrics, estimate:WATTS, command:COMMAND.",
)
@trace_option
@click.option(
    "--ids",
    default="sequential",
    show_default=True,
    metavar="sequential|FILE.json",
    help="Token ids to feed, with --json: 0, 1, 2, ... or a JSON list.",
)
@click.option(
    "--logits", type=click.Path(path_type=Path), help="With --json: save the logits of all fed tokens (.npy, f32)."
)
@checked_option(
    "--limit-s",
    name="limit_s",
    kind=Number(0, above=True),
    default="300.0",
    show_default=True,
    help="Stop decoding after so many seconds.",
)
@model_options_but_threads
@streaming_options
@prompt_options
@power_options
@json_option
def command(
    model: str,
    prompt: str,
    decode: str,
    pairs: tuple[str, ...],
    depth: str,
    batch: str,
    threads: str,
    repetitions: int,
    warm_up: bool | None,
    output: str,
    engine: str,
    endpoint: str | None,
    peer_model: str | None,
    llamacpp_python: str | None,
    energy: str | None,
    trace_path: Path | None,
    ids: str,
    logits: Path | None,
    limit_s: float,
    record_routing: Path | None,
    overwrite: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure MODEL as llama-bench does: every prompt of -p alone, every -n alone, every -pg together, at every depth
    and with all numbers of threads; nothing is sampled.

    Decoding counts the last two thirds of the tokens. What was measured while others were busy, or differs from run to
    run, is said to be noisy: it is no result. --json measures one prompt with what is decoded after it, and prints the
    same fields as the llama.cpp baseline, rates being means over the repetitions.
    """
    from edgerun.cli.bench_once import Once, measure_once
    from edgerun.cli.loading import find_model
    from edgerun.errors import UsageError
    from edgerun.profiling.cases import make_cases, numbers, pair
    from edgerun.profiling.energy import find_meter

    prompts, decodes = numbers("-p", prompt), numbers("-n", decode)
    depths, batches = numbers("-d", depth), numbers("-b", batch)
    threads_list: list[int | None] = [None] if threads == "auto" else [*numbers("-t", threads, low=1, high=1024)]
    peers = chosen_peers(engine, endpoint, peer_model, llamacpp_python)
    once = as_json or ids != "sequential" or logits is not None
    trace = TraceFile(trace_path, overwrite=overwrite)
    if once and (
        pairs or any(len(each) > 1 for each in (prompts, decodes, depths, batches, threads_list)) or output != "md"
    ):
        raise UsageError("--json, --ids and --logits are for one measurement: for several, or other forms, use -o json")
    if once and peers.names != ("edgerun",):
        raise UsageError("--json, --ids and --logits measure edgerun alone: compare engines with -o json")
    with ProgressBars() as bars, ExitStack() as stack:
        path = find_model(model, bars)
        meter = None if energy is None else find_meter(energy)
        if meter is not None:
            stack.callback(meter.close)
            meter.measure_idle()
        options = loading_from(loading, bars)
        if once:
            asked = Once(
                prompts[0], decodes[0], depths[0], batches[0], repetitions, ids, logits, limit_s, warm_up is True
            )
            one = {**options, "threads": threads_list[0] or "auto"}
            measure_once(path, one, asked, (record_routing, overwrite), meter, trace, bars, as_json=as_json)
        else:
            cases = make_cases(prompts, decodes, [pair("-pg", text) for text in pairs], depths, batches)
            sweep = _Sweep(path, options, cases, peers, repetitions, warm_up is not False, limit_s, meter, trace)
            for count in threads_list:
                sweep.measure(count, (record_routing, overwrite), bars)
    trace.write()
    if not once:
        sweep.print(output)


class _Sweep:
    """All cases, by all engines, for one number of threads after the other."""

    def __init__(
        self,
        path: Path,
        options: dict[str, Any],
        cases: list[Case],
        peers: Peers,
        repetitions: int,
        warm_up: bool,
        limit_s: float,
        meter: EnergyMeter | None,
        trace: TraceFile,
    ) -> None:
        self._path, self._options, self._cases, self._peers = path, options, cases, peers
        self._repetitions, self._warm_up, self._limit_s = repetitions, warm_up, limit_s
        self._meter, self._trace = meter, trace
        self._measured: list[Measured] = []
        self._rows: list[dict[str, Any]] = []
        self._ratios: list[str] = []
        self._load_s = 0.0
        self._power = ""

    def measure(self, threads: int | None, recording: tuple[Path | None, bool], bars: ProgressBars) -> None:
        """With so many threads; None: as many as there are cores."""
        from edgerun.cli.loading import load_model
        from edgerun.device import default_threads
        from edgerun.profiling.rows import row
        from edgerun.profiling.session import ratios, run_session

        context = self._options.get("context") or max(64, *(case.tokens for case in self._cases))
        with ExitStack() as stack:
            llm = None
            if "edgerun" in self._peers.names:
                began = time.perf_counter()
                options = {**self._options, "context": context, "threads": threads or "auto"}
                llm = stack.enter_context(load_model(self._path, options))
                stack.enter_context(recorded_routing(llm, recording[0], overwrite=recording[1]))
                self._load_s = time.perf_counter() - began
                stack.enter_context(self._trace.watch(llm))
            engines = open_engines(
                self._peers,
                self._path,
                llm,
                context=context,
                threads=threads or default_threads(),
                limit_s=self._limit_s,
                meter=self._meter,
                stack=stack,
            )
            found = run_session(engines, self._cases, repetitions=self._repetitions, warm_up=self._warm_up, events=bars)
            memory = {} if llm is None else _memory(llm, self._path)
            throttle = None if llm is None else llm.engine.decoder.throttle
            self._power = "" if throttle is None else throttle.describe()
        about = _about(self._path)
        self._measured += found
        self._ratios += [f"{case.name}: {one} / {other} = {value}" for case, one, other, value in ratios(found)]
        self._rows += [row(about, each, memory if each.engine == "edgerun" else {}) for each in found]

    def print(self, form: str) -> None:
        """The rows on stdout; below a table what is to be said about them, else on stderr."""
        from edgerun.profiling.rows import render
        from edgerun.units import format_size

        click.echo(render(form, self._rows))
        say = click.echo if form == "md" else note
        for each in self._measured:
            if each.noise.is_noisy:
                say(f"noisy, no result: {each.case.name} {each.engine}: {each.noise}")
        for line in self._ratios:
            say(line)
        memory = next((each for each in self._rows if each.get("memory_ram_peak_bytes")), None)
        if memory is not None:
            tiers = [key.removeprefix("memory_").removesuffix("_bytes") for key in memory if key.startswith("memory_")]
            sizes = ", ".join(
                f"{tier.replace('_', ' ')} {format_size(memory[f'memory_{tier}_bytes'])}" for tier in tiers
            )
            say(f"loaded in {self._load_s:.2f} s; {sizes}")
        for found in self._rows:
            if "hit_rate" in found and found["n_gen"]:
                say(f"{found['test']}: {streaming_line(found)}")
        if self._power:
            say(f"power: {self._power}")
        if self._meter is not None:
            methods = {value for found in self._rows for key, value in found.items() if key.endswith("_energy_method")}
            say(f"energy: {', '.join(sorted(methods))}")


def _memory(llm: Any, path: Path) -> dict[str, int]:
    """Bytes by tier: the process's peak, what the plan gave weights, keys and values, and what stays on flash."""
    from edgerun.device import peak_bytes

    plan = llm.engine.plan
    weights = plan.dense_bytes + plan.cache_bytes + plan.neuron_cache_bytes
    flash = 0 if plan.mode == "resident" else max(0, path.stat().st_size - weights)
    return {"ram_peak": peak_bytes(), "weights": weights, "kv": plan.kv_bytes, "flash": flash}


def _about(path: Path) -> Any:
    from datetime import UTC, datetime

    from edgerun import __version__
    from edgerun.device import cpu_name
    from edgerun.hub import show
    from edgerun.profiling.rows import About

    info = show(path)
    kind = f"{info.name or path.stem} {info.quantisation}"
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return About(path.name, kind, info.n_bytes, info.parameters, cpu_name(), f"edgerun {__version__}", when)
