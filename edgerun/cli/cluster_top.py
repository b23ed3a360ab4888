"""`edgerun cluster top`."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.options import checked_option, json_option
from edgerun.cli.output import print_json
from edgerun.options import Whole

if TYPE_CHECKING:
    from rich.table import Table

    from edgerun.cluster.watch import Watched

_EVERY_S = 1.0


@click.command(short_help="What all devices do, live.")
@checked_option(
    "--count",
    name="count",
    kind=Whole(1, 1 << 30),
    metavar="N",
    help="Look so often, a second apart, and end.  [default: until Ctrl-C; with --json once]",
)
@click.option("--address", default="", metavar="HOST:PORT", help="Where this device itself listens, if it takes part.")
@json_option
def command(count: int | None, address: str, as_json: bool) -> None:
    """Show what each device does with its time: computing, waiting for slower ones, for the wire, for its disk; what
    its process holds, how long it takes to answer, and whom the others wait for.

    --json prints an object for each look. The head of a group need not listen: then it does not answer, and what it
    does is told by the others.
    """
    home = own_home()
    from edgerun.cluster.dial import PORT, format_address
    from edgerun.cluster.watch import Watch

    left = count or (1 if as_json else 1 << 62)
    with contextlib.closing(Watch(home, address or format_address("127.0.0.1", PORT))) as watch:
        if as_json:
            for number in range(left):
                if number:
                    time.sleep(_EVERY_S)
                print_json({"devices": [_as_dict(each) for each in watch.look()]})
            return
        from rich.live import Live

        with Live(_table(watch.look()), auto_refresh=False) as live:
            for _ in range(left - 1):
                time.sleep(_EVERY_S)
                live.update(_table(watch.look()), refresh=True)


def _as_dict(watched: Watched) -> dict[str, Any]:
    import msgspec

    device, load = watched.device, watched.load
    return {
        "name": watched.name,
        "answers": device is not None,
        "is_head": load is not None and not load.round_trip_s,
        "is_slowest": watched.is_slowest,
        "cores": None if device is None else device.cores,
        "free_bytes": None if device is None else device.memory_bytes,
        "load": None if load is None else {k: v for k, v in msgspec.structs.asdict(load).items() if k != "name"},
    }


def _table(devices: list[Watched]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from edgerun.units import format_size

    table = Table()
    for head in ("device", "tokens", "compute", "wait", "wire", "disk", "memory", "answers in", ""):
        table.add_column(head, justify="right" if head not in ("device", "") else "left")
    for each in devices:
        load = each.load
        if load is None:
            word = "does not answer" if each.device is None else "idle"
            table.add_row(escape(each.name), *[""] * 7, word)
            continue
        spent = load.compute_s + load.wait_s + load.wire_s + load.disk_s
        parts = (load.compute_s, load.wait_s, load.wire_s, load.disk_s)
        shares = [f"{100 * part / spent:.0f} %" if spent else "" for part in parts]
        answers = f"{1e3 * load.round_trip_s:.1f} ms" if load.round_trip_s else "(head)"
        table.add_row(
            escape(each.name),
            str(load.passes),
            *shares,
            format_size(load.memory_bytes),
            answers,
            "the others wait for it" if each.is_slowest else "",
        )
    return table
