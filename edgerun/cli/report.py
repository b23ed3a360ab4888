"""What a conversion did, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgerun.cli.output import note, print_json
from edgerun.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgerun.convert import Fallback, Report


def fallback_lines(fallbacks: Sequence[Fallback]) -> list[str]:
    """A line for all tensors that became the same type for the same reason: files have hundreds of them."""
    alike: dict[str, list[str]] = {}
    for fallback in fallbacks:
        ending = f"{fallback.used} instead of {fallback.wanted}: {fallback.reason}"
        alike.setdefault(ending, []).append(fallback.tensor)
    return [
        f"{names[0]} is {ending}" if len(names) == 1 else f"{len(names)} tensors ({names[0]} ...) are {ending}"
        for ending, names in alike.items()
    ]


def print_report(report: Report, as_json: bool) -> None:
    """The file's path on stdout; what a reader should know on stderr."""
    if as_json:
        print_json(report)
        return
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    note(f"{report.architecture}, {report.n_tensors} tensors ({types}), {format_size(report.n_bytes)}")
    for line in fallback_lines(report.fallbacks):
        note(line)
    for text in report.notes:
        note(f"note: {text}")
    click.echo(report.path)
