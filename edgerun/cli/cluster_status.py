"""`edgerun cluster status`."""

from __future__ import annotations

import click

from edgerun.cli.cluster import own_home
from edgerun.cli.options import json_option
from edgerun.cli.output import print_json, print_pairs


@click.command(short_help="What this device is, and whom it knows.")
@json_option
def command(as_json: bool) -> None:
    """Say who this device is to the others, whom it knows, and what it keeps of models; nobody is asked."""
    home = own_home()
    from edgerun.units import format_size

    kept_bytes = home.shards.kept_bytes()
    others = home.others()
    if as_json:
        print_json(
            {
                "name": home.identity.name,
                "fingerprint": home.identity.fingerprint,
                "shard_bytes": kept_bytes,
                "devices": [
                    {"name": each.name, "fingerprint": each.fingerprint, "address": each.address or None}
                    for each in others
                ],
            }
        )
        return
    print_pairs(
        {
            "this device": home.identity.name,
            "fingerprint": home.identity.fingerprint,
            "shards": format_size(kept_bytes),
            "knows": ", ".join(each.name for each in others) or "no other device",
        }
    )
