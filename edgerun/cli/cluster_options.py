"""Options of commands that take part in the cluster, and what they do once they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgerun.cli.options import kernels_option, memory_option, threads_option
from edgerun.cli.output import note

if TYPE_CHECKING:
    from edgerun.cluster.home import Home
    from edgerun.cluster.server import Server

_LOOK_S = 0.3

F = TypeVar("F", bound=Callable[..., Any])


def part_options(function: F) -> F:
    """--name, --listen, --kernels, --memory, --threads."""
    function = threads_option(memory_option(kernels_option(function)))
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


def take_part(home: Home, listen: tuple[str, int], offered: Mapping[str, Any], said: Callable[[Server], None]) -> None:
    """Listen and work until Ctrl-C. `offered`: kernels, memory, threads as their options give them. `said` is told the
    server once it listens."""
    import threading

    from edgerun.api.cluster import share_worker
    from edgerun.api.device_rates import device_rates
    from edgerun.cli.progress import ProgressBars
    from edgerun.cluster.members import Offered, taking_part
    from edgerun.options import LoadOptions

    options = LoadOptions(kernels=offered["kernels"], memory=offered["memory"], threads=offered["threads"])
    with ProgressBars() as bars:
        rates = device_rates(options.kernels, options.n_threads, bars)
        mine = Offered(options.kernels, options.n_threads, options.memory_bytes, rates)
        work = share_worker(bars, kernels=mine.kernels, threads=mine.threads, memory_bytes=mine.memory_bytes)
        with taking_part(home, listen, work, mine, bars) as server:
            said(server)
            shown = server.code.digits
            never = threading.Event()
            while not never.wait(_LOOK_S):
                digits = server.code.digits
                if digits != shown:
                    note(f"the code is now {spaced(digits)}" if digits else "the code is void: start again for another")
                shown = digits


def spaced(digits: str) -> str:
    """A code, so that it can be read out."""
    return f"{digits[:3]}-{digits[3:]}"
