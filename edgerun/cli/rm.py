"""`edgerun rm`."""

from __future__ import annotations

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import note, print_json


@click.command(short_help="Delete downloaded models.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@json_option
def command(models: tuple[str, ...], as_json: bool) -> None:
    """Delete downloaded models, by the names that `edgerun list` shows, or by alias."""
    from edgerun.errors import UsageError
    from edgerun.hub import remove
    from edgerun.hub.names import RepoName
    from edgerun.hub.resolve import locate
    from edgerun.units import format_size

    removed = []
    for model in models:
        found = locate(model)
        if not isinstance(found, RepoName):
            raise UsageError(f"{model} was not downloaded by edgerun; delete the file {found} yourself")
        removed.append(remove(found))
    if as_json:
        print_json({"removed": [{"name": model.name, "n_bytes": model.n_bytes} for model in removed]})
        return
    for gone in removed:
        note(f"deleted {gone.name} ({format_size(gone.n_bytes)})")
