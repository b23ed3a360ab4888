"""`edgerun profile`."""

from __future__ import annotations

import contextlib
import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.options import (
    checked_option,
    loading_from,
    model_options,
    overwrite_option,
    prompt_options,
    trace_option,
)
from edgerun.cli.output import check_target, note, print_pairs, print_table, printable, write_result
from edgerun.cli.progress import ProgressBars
from edgerun.cli.trace_file import is_trace, write_trace
from edgerun.options import Whole

if TYPE_CHECKING:
    from edgerun.profiling.report import Report

_OPENINGS = {".html": b"<!doctype html>", ".md": b"# ", ".json": b'{"format": "edgerun profile', ".yaml": b"name: "}


@click.command(short_help="Where a model's time, bytes and joules go.")
@click.argument("targets", nargs=-1, metavar="[MODEL | compare A.json B.json]")
@click.option(
    "--device", is_flag=True, help="Measure this machine instead, and keep its profile for `plan --device this`."
)
@checked_option(
    "-p", "--prompt", name="prompt", kind=Whole(1, 1 << 20), default="256", show_default=True, help="Prompt tokens."
)
@checked_option(
    "-n", "--decode", name="decode", kind=Whole(6, 1 << 20), default="64", show_default=True, help="Tokens to decode."
)
@checked_option(
    "-r", "--repetitions", name="repetitions", kind=Whole(1, 1000), default="3", show_default=True, help="Runs."
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.html|.md|.json|.png|.svg|.yaml",
    help="Write the page, Markdown, all figures, plots, or (--device) a device's profile; may be repeated.",
)
@trace_option
@click.option(
    "--energy",
    default="auto",
    show_default=True,
    metavar="METER",
    help="Count joules: auto, rapl, battery, ina, nvml, powermetrics, estimate:WATTS, command:COMMAND.",
)
@click.option("--plot", is_flag=True, help="Draw the charts in the terminal, too (pip install 'edgerun[plots]').")
@model_options
@prompt_options
@overwrite_option
def command(
    targets: tuple[str, ...],
    device: bool,
    prompt: int,
    decode: int,
    repetitions: int,
    outputs: tuple[Path, ...],
    trace_path: Path | None,
    energy: str,
    plot: bool,
    overwrite: bool,
    **loading: Any,
) -> None:
    """Measure MODEL and say on one page where its time, bytes and joules go, how near every operation is to what this
    machine could do, what binds, and what to change next.

    `compare A.json B.json` sets two profiles side by side (-o FILE.json wrote them), and says what they were not
    measured alike in. --device measures the machine itself: memory, disk, products by type.
    """
    from edgerun.errors import UnsupportedError, UsageError

    for path in outputs:
        if path.suffix not in (*_OPENINGS, ".png", ".svg"):
            raise UsageError(f"{path}: -o takes names that end in .html, .md, .json, .png, .svg or .yaml")
        check_target(path, _is_ours, overwrite=overwrite)
    if trace_path is not None:
        check_target(trace_path, is_trace, overwrite=overwrite)
    drawn = any(path.suffix in (".png", ".svg") for path in outputs)
    for is_wanted, package in ((plot, "plotext"), (drawn, "matplotlib")):
        if is_wanted and find_spec(package) is None:  # before minutes of measuring
            raise UnsupportedError(f"charts need {package}: pip install 'edgerun[plots]'")
    if targets[:1] == ("compare",):
        _compare(targets[1:])
        return
    if device:
        if targets:
            raise UsageError("--device measures the machine, not a model")
        _measure_machine(outputs, energy, loading)
        return
    if len(targets) > 1:
        raise UsageError(f"one MODEL at a time, got {len(targets)}")
    model = targets[0] if targets else "default"
    report, trace = _profile(model, (prompt, decode, repetitions), energy, loading)
    _show(report)
    if plot:
        from edgerun.profiling.terminal_plots import terminal_charts

        click.echo("\n" + terminal_charts(report))
    for path in outputs:
        _write(path, report)
    if trace_path is not None:
        write_trace(trace_path, trace)


def _profile(model: str, sizes: tuple[int, int, int], energy: str, loading: dict[str, Any]) -> tuple[Report, Any]:
    from edgerun.api.profile import profile_model
    from edgerun.cli.loading import find_model, load_model
    from edgerun.profiling.energy import find_meter

    prompt, decode, repetitions = sizes
    with ProgressBars() as bars, contextlib.closing(find_meter(energy)) as meter:
        path = find_model(model, bars)
        options = {**loading_from(loading, bars), "context": loading["context"] or prompt + decode}
        meter.measure_idle()
        with load_model(path, options) as llm:
            return profile_model(
                llm,
                path,
                prompt_tokens=prompt,
                decode_tokens=decode,
                repetitions=repetitions,
                meter=meter,
                command=_command(model, sizes, loading),
                events=bars,
            )


def _command(model: str, sizes: tuple[int, int, int], loading: dict[str, Any]) -> str:
    """That makes such a page again, without this machine's folders."""
    parts = ["edgerun", "profile", Path(model).name, "-p", str(sizes[0]), "-n", str(sizes[1]), "-r", str(sizes[2])]
    for name, option in (("memory", "--memory"), ("threads", "-t"), ("kernels", "--kernels"), ("kv", "--kv")):
        if loading[name] not in (None, "auto", "f16"):
            value = loading[name]
            parts += [option, f"{value >> 20}M" if name == "memory" else str(value)]
    return shlex.join(parts)


def _show(report: Report) -> None:
    """The page for a terminal."""
    from edgerun.profiling.report import headline, operations, tiers

    print_pairs(dict(headline(report)))
    for phase in ("prompt", "decode"):
        click.echo()
        print_table(
            (phase.upper(), "MS", "SHARE", "OF LIMIT", "BOUND BY"),
            operations(report, phase),
            right=("MS", "SHARE", "OF LIMIT"),
        )
    click.echo()
    print_pairs(dict(tiers(report)))
    click.echo("\nwhat next")
    for number, text in enumerate(report["advice"]["what"], 1):
        click.echo(f"  {number}. {text}")


def _write(path: Path, report: Report) -> None:
    from edgerun.profiling.pages import html_page, markdown_page

    if path.suffix == ".html":
        write_result(path, html_page(report).encode())
    elif path.suffix == ".md":
        write_result(path, markdown_page(report).encode())
    elif path.suffix == ".json":
        write_result(path, json.dumps(report).encode())
    elif path.suffix == ".yaml":
        note(f"{path}: a device's profile is written with --device")
    else:
        from edgerun.profiling.plots import draw

        write_result(path, draw(report, path.suffix[1:]))


def _measure_machine(outputs: tuple[Path, ...], energy: str, loading: dict[str, Any]) -> None:
    from edgerun.cli.devices import own_profile_path
    from edgerun.options import MachineKeywords, load_options
    from edgerun.paths import cache_dir, replace_file
    from edgerun.profiling.energy import find_meter
    from edgerun.profiling.measure_device import measure_device

    with ProgressBars() as bars, contextlib.closing(find_meter(energy)) as meter:
        asked: MachineKeywords = {"kernels": loading["kernels"], "threads": loading["threads"]}
        given = load_options(asked)
        found = measure_device(cache_dir(), kernels=given.kernels, threads=given.n_threads, meter=meter, events=bars)
    text = found.as_yaml()
    for path in outputs:
        write_result(path, text.encode())
    if not outputs:
        replace_file(own_profile_path(), [text.encode()])
        note(f"kept as {own_profile_path()}")
    click.echo(text, nl=False)


def _compare(names: tuple[str, ...]) -> None:
    from edgerun.errors import UsageError
    from edgerun.paths import user_path
    from edgerun.profiling.report import compare, differences, load_report

    if len(names) != 2:
        raise UsageError(f"compare takes two profiles, got {len(names)}: edgerun profile compare A.json B.json")
    first, second = (load_report(user_path(name)) for name in names)
    print_table(("", "A", "B", "B / A"), compare(first, second), right=("A", "B", "B / A"))
    for text in differences(first, second):
        click.echo(printable(text))


def _is_ours(path: Path) -> bool:
    """Whether a file begins as what -o writes under such a name."""
    with path.open("rb") as file:
        begins = file.read(32)
    opening = _OPENINGS.get(path.suffix, b"")
    return bool(opening) and begins.startswith(opening)
