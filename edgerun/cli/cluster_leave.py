"""`edgerun cluster leave`."""

from __future__ import annotations

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.options import json_option
from edgerun.cli.output import note, print_json


@click.command(short_help="Take this device out.")
@json_option
def command(as_json: bool) -> None:
    """Put this device out everywhere, and forget the others, this device's key and the shards that it was given."""
    home = own_home()
    from edgerun.cluster.members import leave

    untold = leave(home)
    if as_json:
        print_json({"name": home.identity.name, "untold": untold.silent, "refused_by": untold.refusing})
        return
    note(f"{home.identity.name} has left")
    if untold.refusing:
        note(f"not told, since it was put out there before: {', '.join(untold.refusing)}")
    if untold.silent:
        note(f"not told, since they do not answer: {', '.join(untold.silent)}; say `edgerun cluster forget` there")
