"""Options that several commands have. Environment variables are read here and nowhere deeper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

KERNEL_NAMES = (
    "auto",
    "reference",
    "portable",
    "avx2",
    "avx512",
)  # kernels.KERNEL_NAMES, without importing numpy


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model."""

    context: int | None
    threads: int | None
    kernels: str
    memory: str = "auto"
    prefetch: bool = True
    prefill: str = "auto"


def model_options(function: F) -> F:
    """-c, -t, --memory, --kernels."""
    function = click.option(
        "--memory",
        metavar="SIZE|auto",
        default="auto",
        show_default=True,
        envvar="EDGERUN_MEMORY",
        show_envvar=True,
        help="What the process may take (2G, 512M); a larger model is streamed from its file.",
    )(function)
    function = click.option(
        "--kernels",
        type=click.Choice(KERNEL_NAMES),
        default="auto",
        show_default=True,
        envvar="EDGERUN_KERNELS",
        show_envvar=True,
        help="Which implementation of the operations to use.",
    )(function)
    function = threads_option(function)
    return click.option(
        "-c",
        "--context",
        type=click.IntRange(min=1),
        help="Tokens that prompt and reply may have together.  [default: the model's, at most 4096]",
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
    return click.option(
        "--prefill",
        metavar="auto|kernels|BACKEND[:SCHEME][:experts]",
        default="auto",
        show_default=True,
        envvar="EDGERUN_PREFILL",
        show_envvar=True,
        help="What computes prompts: ours, or a backend that `edgerun doctor --providers` lists; auto: as calibrated.",
    )(function)


def threads_option(function: F) -> F:
    """-t."""
    return click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
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


# option -> (type, help); None: left out, the library's default holds
_SAMPLING: dict[str, tuple[Any, str]] = {
    "temperature": (click.FloatRange(min=0), "0 takes the likeliest token each time."),
    "top-k": (click.IntRange(min=0), "Choose among the K likeliest (0: all)."),
    "top-p": (click.FloatRange(0, 1), "Choose among the fewest that sum to P (1: all)."),
    "min-p": (click.FloatRange(0, 1), "Choose among those at least P times as likely as the likeliest."),
    "repeat-penalty": (click.FloatRange(min=0, min_open=True), "Make recent tokens less likely (1: off)."),
    "seed": (click.IntRange(min=0), "The same seed gives the same text."),
}


def sampling_options(function: F) -> F:
    """-n, --temperature and the others that choose tokens; see `sampling_from`."""
    function = click.option(
        "--stop", multiple=True, metavar="TEXT", help="End the reply before this text; may be repeated."
    )(function)
    for name, (kind, text) in reversed(_SAMPLING.items()):
        function = click.option(f"--{name}", type=kind, help=text)(function)
    return click.option(
        "-n",
        "--max-tokens",
        type=click.IntRange(min=0),
        help="Longest reply.  [default: until the model ends]",
    )(function)


SAMPLING_NAMES = ("max_tokens", *(name.replace("-", "_") for name in _SAMPLING), "stop")


def sampling_from(given: dict[str, Any]) -> dict[str, Any]:
    """Of a command's arguments, those for `SamplingParams` that the user gave."""
    return {name: given[name] for name in SAMPLING_NAMES if given.get(name) not in (None, ())}
