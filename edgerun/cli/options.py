"""Options that several commands have. Environment variables are read here and nowhere deeper.

What a value may be is declared in `edgerun.options`, for the library and for this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from edgerun.errors import UsageError
from edgerun.events import EventSink
from edgerun.options import KERNEL_NAMES, LOADING, SAMPLING, THINK, Kind

F = TypeVar("F", bound=Callable[..., Any])


def checked_option(*flags: str, name: str, kind: Kind, **more: Any) -> Callable[[F], F]:
    """An option of a declared kind: the text of the command line or an environment variable is parsed by it. Not given
    and without a default it is None."""

    def parse(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else kind.parse(name, text)
        except UsageError as error:
            raise click.BadParameter(str(error)) from error

    return click.option(*flags, name, type=str, callback=parse, **{"metavar": kind.metavar, **more})


def model_options(function: F) -> F:
    """-c, --window, --sinks, --kv, -t, --memory, --kernels."""
    return model_options_but_threads(threads_option(function))


def model_options_but_threads(function: F) -> F:
    """-c, --window, --sinks, --kv, --memory, --kernels."""
    function = memory_option(function)
    function = checked_option(
        "--kv",
        name="kv",
        kind=LOADING["kv"],
        metavar="f16|q8_0|q4_0",
        default="f16",
        show_default=True,
        envvar="EDGERUN_KV",
        show_envvar=True,
        help="How keys and values are kept: q8_0 takes half the memory, q4_0 a quarter; q8_0/q4_0: keys/values.",
    )(function)
    function = kernels_option(function)
    function = checked_option(
        "--sinks",
        name="sinks",
        kind=LOADING["sinks"],
        default="4",
        show_default=True,
        help="With --window: how many of the first tokens are seen all the same.",
    )(function)
    function = checked_option(
        "--window",
        name="window",
        kind=LOADING["window"],
        help="See only so many of the last tokens: texts and chats go on for ever, in memory that does not grow.",
    )(function)
    return checked_option(
        "-c",
        "--context",
        name="context",
        kind=LOADING["context"],
        help="Tokens that prompt and reply may have together.  [default: the model's, at most 4096]",
    )(function)


def memory_option(function: F) -> F:
    """--memory."""
    return checked_option(
        "--memory",
        name="memory",
        kind=LOADING["memory"],
        metavar="SIZE|auto",
        default="auto",
        show_default=True,
        envvar="EDGERUN_MEMORY",
        show_envvar=True,
        help="What the process may take (2G, 512M); a larger model is streamed from its file.",
    )(function)


def kernels_option(function: F) -> F:
    """--kernels."""
    return click.option(
        "--kernels",
        type=click.Choice(KERNEL_NAMES),
        default="auto",
        show_default=True,
        envvar="EDGERUN_KERNELS",
        show_envvar=True,
        help="Which implementation of the operations to use.",
    )(function)


def streaming_options(function: F) -> F:
    """--no-prefetch, --record-routing, --overwrite."""
    function = overwrite_option(function)
    function = click.option(
        "--record-routing",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write which experts each token used (JSON), for `edgerun plan --routing`.",
    )(function)
    return click.option(
        "--prefetch/--no-prefetch",
        default=True,
        show_default=True,
        help="Of a model larger than memory: read weights before they are surely needed.",
    )(function)


def prompt_options(function: F) -> F:
    """--prefill."""
    return checked_option(
        "--prefill",
        name="prefill",
        kind=LOADING["prefill"],
        metavar="auto|kernels|BACKEND[:SCHEME][:experts]",
        default="auto",
        show_default=True,
        envvar="EDGERUN_PREFILL",
        show_envvar=True,
        help="What computes prompts: ours, or a backend that `edgerun doctor --providers` lists; auto: as calibrated.",
    )(function)


def cluster_options(function: F) -> F:
    """--cluster, --all-devices, --allreduce, --wire, --same-tokens."""
    function = click.option(
        "--same-tokens/--no-same-tokens",
        "same_tokens",
        default=None,
        help="With --cluster: the same answers whichever devices take part.  [default: where it costs little]",
    )(function)
    function = click.option(
        "--wire",
        type=click.Choice(["f32", "f16", "q8", "auto"]),
        help="With --cluster: how numbers travel; f32 is exact; auto: q8 for prompts where that pays.  [default: f32]",
    )(function)
    function = click.option(
        "--allreduce",
        type=click.Choice(["auto", "star", "mesh", "ring", "tree"]),
        help="With --cluster: how sums over devices travel.  [default: auto, as measured]",
    )(function)
    function = click.option(
        "--all-devices",
        is_flag=True,
        help="With --cluster: all that answer take part, also where fewer, or this one alone, should be faster.",
    )(function)
    return click.option(
        "--cluster",
        is_flag=True,
        help="Share the model out among those devices of `edgerun cluster devices` with which it should be faster.",
    )(function)


def power_options(function: F) -> F:
    """--power-limit, --power-meter, --battery-saver, --max-celsius."""
    function = checked_option(
        "--max-celsius",
        name="max_celsius",
        kind=LOADING["max_celsius"],
        metavar="C",
        help="Rest between tokens so that the machine gets no hotter than this.",
    )(function)
    function = click.option(
        "--battery-saver",
        is_flag=True,
        envvar="EDGERUN_BATTERY_SAVER",
        show_envvar=True,
        help="Compute half of the time while a battery discharges.",
    )(function)
    function = checked_option(
        "--power-meter",
        name="power_meter",
        kind=LOADING["power_meter"],
        metavar="METER",
        default="auto",
        show_default=True,
        help="What counts the power: auto, rapl, battery, ina, powermetrics, estimate:WATTS, command:COMMAND.",
    )(function)
    return checked_option(
        "--power-limit",
        name="power_limit",
        kind=LOADING["power_limit"],
        metavar="WATTS",
        envvar="EDGERUN_POWER_LIMIT",
        show_envvar=True,
        help="Rest between tokens so that the power stays within this.",
    )(function)


def context_shift_option(function: F) -> F:
    """--context-shift."""
    return checked_option(
        "--context-shift",
        name="context_shift",
        kind=LOADING["context_shift"],
        help="Whether the oldest turns of a chat that outgrows its context leave.  [default: on in a chat]",
    )(function)


def chat_options(function: F) -> F:
    """--think, --replies."""
    function = checked_option(
        "--replies",
        name="replies",
        kind=LOADING["replies"],
        metavar="auto|plain",
        default="auto",
        show_default=True,
        help="auto: what the model thinks stands apart from its answer (dimmed); plain: all as it writes it.",
    )(function)
    return checked_option(
        "--think",
        name="think",
        kind=THINK,
        metavar="on|off|low|medium|high",
        help="How much the model thinks before it answers, where its chat template asks.  [default: the model's]",
    )(function)


def draft_option(function: F) -> F:
    """--draft."""
    return checked_option(
        "--draft",
        name="draft",
        kind=LOADING["draft"],
        metavar="lookup|MODEL",
        envvar="EDGERUN_DRAFT",
        show_envvar=True,
        help="Who guesses what comes next, for speed: what the text has already, or a small model.",
    )(function)


def trace_option(function: F) -> F:
    """--trace."""
    return click.option(
        "--trace",
        "trace_path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write what every thread did, for Perfetto or chrome://tracing (JSON).",
    )(function)


def threads_option(function: F) -> F:
    """-t."""
    return checked_option(
        "-t",
        "--threads",
        name="threads",
        kind=LOADING["threads"],
        metavar="INTEGER|auto",
        default="auto",
        envvar="EDGERUN_THREADS",
        show_envvar=True,
        help="Threads that compute.  [default: the physical cores]",
    )(function)


def overwrite_option(function: F) -> F:
    """--overwrite."""
    return click.option("--overwrite", is_flag=True, help="Write over a file that is there, whatever it is.")(function)


def json_option(function: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)


def loading_from(given: Mapping[str, Any], events: EventSink) -> dict[str, Any]:
    """Of a command's arguments, those for loading a model: `LoadKeywords`."""
    return {**{name: given[name] for name in LOADING if name in given}, "events": events}


# option -> help; None: left out, the library's default holds
_SAMPLING = {
    "max_tokens": "Longest reply.  [default: until the model ends]",
    "temperature": "0 takes the likeliest token each time.",
    "top_k": "Choose among the K likeliest (0: all).",
    "top_p": "Choose among the fewest that sum to P (1: all).",
    "min_p": "Choose among those at least P times as likely as the likeliest.",
    "repeat_penalty": "Make recent tokens less likely (1: off).",
    "seed": "The same seed gives the same text.",
}
SAMPLING_NAMES = (*_SAMPLING, "stop")


def sampling_options(function: F) -> F:
    """-n, --temperature and the others that choose tokens; see `sampling_from`."""
    function = click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="End the reply before this text; may be repeated.",
    )(function)
    for name, text in reversed(_SAMPLING.items()):
        names = [f"--{name.replace('_', '-')}", *(["-n"] if name == "max_tokens" else [])]
        function = checked_option(*names, name=name, kind=SAMPLING[name], help=text)(function)
    return function


def sampling_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those for `SamplingParams` that the user gave."""
    return {name: given[name] for name in SAMPLING_NAMES if given.get(name) not in (None, ())}
