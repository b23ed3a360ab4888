"""Options of commands that take part in the cluster, and what they do once they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgerun.cli.output import note

if TYPE_CHECKING:
    from edgerun.cluster.home import Home
    from edgerun.cluster.server import Server

_LOOK_S = 0.3

F = TypeVar("F", bound=Callable[..., Any])


def part_options(function: F) -> F:
    """--name, --listen."""
    function = click.option(
        "--listen",
        default="127.0.0.1",
        show_default=True,
        metavar="lan|HOST[:PORT]",
        help="Where to listen: lan is every network of this device; the default is heard on this machine alone.",
    )(function)
    return click.option("--name", metavar="NAME", help="What to call this device.  [default: the machine's name]")(
        function
    )


def take_part(home: Home, listen: tuple[str, int], kernels: str, said: Callable[[Server, str], None]) -> None:
    """Listen and work until Ctrl-C. `said` is told the server and its address once it listens."""
    import threading

    from edgerun.api.cluster import compute_share
    from edgerun.cli.progress import ProgressBars
    from edgerun.cluster.members import taking_part

    with ProgressBars() as bars, taking_part(home, listen, compute_share, kernels, bars) as (server, address):
        said(server, address)
        shown = server.code.digits
        never = threading.Event()
        while not never.wait(_LOOK_S):
            digits = server.code.digits
            if digits != shown:
                note(f"the code is now {spaced(digits)}" if digits else "no more devices are taken in: start it again")
            shown = digits


def spaced(digits: str) -> str:
    """A code, so that it can be read out."""
    return f"{digits[:3]}-{digits[3:]}"
