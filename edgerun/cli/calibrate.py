"""`edgerun calibrate`."""

from __future__ import annotations

from typing import Any

import click

from edgerun.cli.options import checked_option, json_option, kernels_option, memory_option, threads_option
from edgerun.cli.output import note, print_json, print_table
from edgerun.cli.progress import ProgressBars
from edgerun.options import Number


@click.command(short_help="Find the best way to process prompts here.")
@click.argument("model", default="default")
@click.option(
    "--objective",
    type=click.Choice(("auto", "latency", "energy")),
    default="auto",
    show_default=True,
    help="What to choose by; auto is latency.",
)
@checked_option(
    "--most-error",
    name="most_error",
    kind=Number(0),
    help="Accept backends that change the logits by at most this share.  [default: 0.05]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="BACKEND[:SCHEME]",
    help="Measure this one; may be repeated.  [default: all that are here]",
)
@memory_option
@kernels_option
@threads_option
@json_option
def command(
    model: str,
    objective: Any,
    most_error: float | None,
    backends: tuple[str, ...],
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure how fast this machine processes prompts of MODEL: with edgerun's own kernels, and on every NPU, GPU or
    CPU that ONNX Runtime has a provider for; what each changes in the results; and what weights it keeps.

    The choice is kept and used from then on (`--prefill auto`).
    """
    from edgerun.api.calibration import calibrate_model

    with ProgressBars() as bars:
        found = calibrate_model(
            model,
            objective=objective,
            most_error=most_error,
            backends=backends,
            events=bars,
            **loading,
        )
    if as_json:
        print_json(found.as_dict())
        return
    print_calibration(found)


def print_calibration(found: Any) -> None:
    """A table, what was chosen, and why others refused."""
    from edgerun.units import format_size

    print_table(
        ["BACKEND", "TOKENS", "MS", "TOKENS/S", "JOULES", "ERROR", "WEIGHTS"],
        [
            [
                row.backend,
                str(row.tokens),
                f"{row.prompt_s * 1e3:.0f}",
                f"{row.tokens / row.prompt_s:.0f}",
                "-" if row.joules is None else f"{row.joules:.1f}",
                f"{row.error:.4f}" if row.error else "-",
                f"{format_size(row.weights_bytes)}{'' if row.copied else ', mapped'}" if row.weights_bytes else "-",
            ]
            for row in found.rows
            if not row.refused
        ],
        right=["TOKENS", "MS", "TOKENS/S", "JOULES", "ERROR"],
    )
    for row in found.rows:
        if row.refused:
            note(f"{row.backend}: {row.refused}")
    click.echo(f"chosen: {found.choice} ({found.why})")
