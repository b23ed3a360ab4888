"""`edgerun list`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgerun.cli.options import json_option
from edgerun.cli.output import note, print_json, print_table


@click.command("list", short_help="List the models that are here.")
@click.option("--aliases", is_flag=True, help="List the short names that edgerun knows instead.")
@json_option
def command(aliases: bool, as_json: bool) -> None:
    """List the models that are here: downloaded ones, and the one that comes with edgerun."""
    if aliases:
        _print_aliases(as_json)
        return
    from edgerun.hub import embedded_model, list_models
    from edgerun.units import format_size

    rows: list[dict[str, Any]] = []
    packaged = embedded_model()
    if packaged is not None:
        rows.append(_row("default", None, [packaged], packaged.stat().st_size, packaged.stat().st_mtime))
    for model in list_models():
        rows.append(_row(model.name, model.quant, list(model.paths), model.n_bytes, model.modified_s))
    if as_json:
        print_json({"models": rows})
        return
    if not rows:
        note("no models yet; `edgerun pull qwen3-0.6b` downloads one, `edgerun list --aliases` shows more")
        return
    table = [(r["name"], format_size(r["n_bytes"]), r["modified"]) for r in rows]
    print_table(("NAME", "SIZE", "MODIFIED"), table, right=("SIZE",))


def _row(name: str, quant: str | None, paths: list[Path], n_bytes: int, modified_s: float) -> dict[str, Any]:
    modified = time.strftime("%Y-%m-%d %H:%M", time.localtime(modified_s))
    return {"name": name, "quant": quant, "n_bytes": n_bytes, "modified": modified, "files": paths}


def _print_aliases(as_json: bool) -> None:
    from edgerun.hub import load_cards

    cards = list(load_cards().values())
    if as_json:
        print_json({"aliases": cards})
        return
    rows = [(card.alias, card.repo or "packaged", card.licence, card.summary) for card in cards]
    print_table(("ALIAS", "MODEL", "LICENCE", "WHAT"), rows)
