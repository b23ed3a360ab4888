"""`edgerun cluster plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgerun.cli.options import checked_option, json_option
from edgerun.cli.output import note, print_json, print_table
from edgerun.options import LOADING


@click.command(short_help="Which devices should run a model, and how.")
@click.argument("model", default="default")
@click.option(
    "--devices",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="YAML with the devices' rates, memory and links: see docs/cluster.md.",
)
@checked_option("-c", "--context", name="context", kind=LOADING["context"], help="Tokens of a sequence.")
@json_option
def command(model: str, devices: Path, context: int | None, as_json: bool) -> None:
    """Say how fast MODEL would be on one of the devices in FILE, and on several, and what to take.

    Nothing is loaded and nobody is asked: it works for devices that are not here, or not bought yet.
    """
    from edgerun.api.cluster_plan import plan_cluster
    from edgerun.cluster.profiles import read_profiles

    made = plan_cluster(model, read_profiles(devices), context=context)
    if made.why_whole:
        note(made.why_whole)
    if as_json:
        print_json(made.as_dict())
        return
    rows = [_row(choice, choice is made.best) for choice in made.found]
    print_table(("", "how", "devices", "parts", "tok/s", "prompt"), rows, right=("tok/s", "prompt"))
    if any(not choice.runs for choice in made.found):
        note("pipelines are for comparison: edgerun divides every layer")


def _row(choice: Any, best: bool) -> tuple[str, ...]:
    how = {"alone": "alone", "pipeline": "pipeline", "tensor": f"every layer, {choice.way}"}[choice.kind]
    parts = ":".join(f"{100 * part:.0f}" for part in choice.parts)
    return "→" if best else "", how, ", ".join(choice.devices), parts, f"{choice.tok_s:.2f}", f"{choice.prompt_s:.1f} s"
