"""`edgerun cluster forget`."""

from __future__ import annotations

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.options import json_option
from edgerun.cli.output import note, print_json


@click.command(short_help="Put a device out.")
@click.argument("name")
@json_option
def command(name: str, as_json: bool) -> None:
    """Put the device called NAME (or whose fingerprint begins so) out for good, here and on all devices that answer;
    the others hear of it when they next talk to one that knows. To come back it has to `leave` and `join` anew."""
    home = own_home()
    from edgerun.cluster.members import forget

    gone, untold = forget(home, name)
    if as_json:
        about = {"name": gone.name, "fingerprint": gone.fingerprint}
        print_json({**about, "untold": untold.silent, "refused_by": untold.refusing})
        return
    note(f"{gone.name} is out")
    if untold.refusing:
        note(f"not told, since they have put this device out: {', '.join(untold.refusing)}")
    if untold.silent:
        note(f"not told yet, since they do not answer: {', '.join(untold.silent)}")
