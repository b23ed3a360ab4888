"""`edgerun cluster join`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.cluster_options import part_options, take_part
from edgerun.cli.output import note
from edgerun.cli.progress import ProgressBars

if TYPE_CHECKING:
    from edgerun.cluster.server import Server


@click.command(short_help="Join with the code that another device shows, and take part.")
@click.argument("code")
@click.option("--peer", metavar="HOST[:PORT]", help="The device that shows it.  [default: the one that is found]")
@click.option("--only", is_flag=True, help="Join, but do not take part now: `edgerun cluster up` does later.")
@part_options
def command(code: str, peer: str | None, only: bool, name: str | None, listen: str, **offered: Any) -> None:
    """Pair this device with the one that shows CODE (`edgerun cluster up`), and with all that it knows; then listen and
    compute this device's share until Ctrl-C.
    """
    home = own_home(name)
    from edgerun.cluster.members import join, parse_listen

    place = parse_listen(listen)
    with ProgressBars() as bars:
        host = join(home, code, peer, "", bars)
    note(f"{home.identity.name} joined {host.name}; known now: {', '.join(each.name for each in home.others())}")
    if only:
        return

    def said(server: Server) -> None:
        note(f"{home.identity.name} listens at {server.address}")

    take_part(home, place, offered, said)
