"""`edgerun cluster up`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.cluster_options import part_options, spaced, take_part
from edgerun.cli.output import note

if TYPE_CHECKING:
    from edgerun.cluster.server import Server


@click.command(short_help="Take part, and show a code for devices that shall join.")
@part_options
def command(name: str | None, listen: str, **offered: Any) -> None:
    """Listen for the other devices until Ctrl-C: take in who has the code, and compute this device's share of what
    they run.

    With --listen lan devices of the same network can join; without, only others on this machine.
    """
    home = own_home(name)
    from edgerun.cluster.members import parse_listen

    def said(server: Server) -> None:
        digits = server.code.open()
        note(f"{home.identity.name} listens at {server.address}")
        at = "" if listen == "lan" else f" --peer {server.address}"
        note(f"on the other device: edgerun cluster join {spaced(digits)}{at}")

    take_part(home, parse_listen(listen), offered, said)
