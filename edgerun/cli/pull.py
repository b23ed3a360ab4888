"""`edgerun pull`."""

from __future__ import annotations

from pathlib import Path

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import note, print_json
from edgerun.cli.progress import ProgressBars


@click.command(short_help="Download a model.")
@click.argument("model")
@json_option
def command(model: str, as_json: bool) -> None:
    """Download MODEL and print where it lies.

    MODEL is org/repo:quant, hf.co/org/repo:quant, org/repo:file.gguf, or an alias (see `edgerun list
    --aliases`). Without a quantisation Q4_K_M is taken where there is one. An interrupted download goes on
    where it stopped.
    """
    from edgerun.errors import UsageError
    from edgerun.hub import find_cached, pull
    from edgerun.hub.resolve import locate
    from edgerun.units import format_size

    found = locate(model)
    if isinstance(found, Path):
        if as_json:
            print_json({"name": model, "path": found, "n_bytes": found.stat().st_size, "files": [found]})
            return
        raise UsageError(f"{model} is a file that is already here: {found}")
    with ProgressBars() as bars:
        path = pull(found, events=bars)
    cached = find_cached(found)
    if as_json:
        files = [path] if cached is None else list(cached.paths)
        size = sum(file.stat().st_size for file in files)
        print_json(
            {
                "name": str(found) if cached is None else cached.name,
                "path": path,
                "n_bytes": size,
                "files": files,
            }
        )
        return
    if cached is not None:
        note(f"{cached.name}: {format_size(cached.n_bytes)}")
    click.echo(path)
