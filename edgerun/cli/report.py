"""What a conversion did, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgerun.cli.output import note, print_json
from edgerun.units import format_size

if TYPE_CHECKING:
    from edgerun.convert import Report


def print_report(report: Report, as_json: bool) -> None:
    """The file's path on stdout; what a reader should know on stderr."""
    if as_json:
        print_json(report)
        return
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    note(f"{report.architecture}, {report.n_tensors} tensors ({types}), {format_size(report.n_bytes)}")
    for fallback in report.fallbacks:
        note(f"{fallback.tensor} is {fallback.used} instead of {fallback.wanted}: {fallback.reason}")
    for text in report.notes:
        note(f"note: {text}")
    click.echo(report.path)
