"""`edgerun cluster devices`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.options import json_option
from edgerun.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgerun.cluster.members import Standing


@click.command(short_help="All devices, and whether they answer.")
@json_option
def command(as_json: bool) -> None:
    """Ask each device that this one knows what it is and what it does, and say how long it took to answer."""
    home = own_home()
    from edgerun.cluster.members import look_around
    from edgerun.units import format_size

    found = look_around(home, find=True)
    if as_json:
        print_json(
            {
                "devices": [
                    {
                        "name": each.member.name,
                        "fingerprint": each.member.fingerprint,
                        "address": each.address or None,
                        "answers": each.device is not None,
                        "why_not": each.why or None,
                        "round_trip_s": each.round_trip_s or None,
                        "cores": None if each.device is None else each.device.cores,
                        "weights_bytes_per_s": None if each.device is None else each.device.weights_bytes_per_s,
                        "prompt_ops_per_s": None if each.device is None else each.device.prompt_ops_per_s,
                        "disk_bytes_per_s": None if each.device is None else each.device.disk_bytes_per_s,
                        "memory_bytes": None if each.device is None else each.device.memory_bytes,
                        "does": None if each.device is None else each.device.job,
                    }
                    for each in found
                ]
            }
        )
        return
    rows = []
    for each in found:
        device = each.device
        if device is None:
            rows.append([each.member.name, each.address or "?", "", "", "", "", "", _why_not(each)])
            continue
        answered = f"{1e3 * each.round_trip_s:.1f} ms"
        rate = f"{device.weights_bytes_per_s / 1e9:.1f} GB/s" if device.weights_bytes_per_s else "?"
        disk = f"{device.disk_bytes_per_s / 1e9:.2f} GB/s" if device.disk_bytes_per_s else "?"
        rows.append([each.member.name, each.address, answered, str(device.cores), rate, disk])
        rows[-1] += [format_size(device.memory_bytes), device.job or "idle"]
    heads = ("name", "address", "answers in", "cores", "weights", "disk", "memory", "does")
    print_table(heads, rows, right=("answers in", "cores", "weights", "disk"))


def _why_not(standing: Standing) -> str:
    return "has put this device out" if standing.has_put_us_out else f"does not answer: {standing.why}"
