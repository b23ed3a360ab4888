"""`edgerun cluster`: its commands, one file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgerun.cli.lazy_group import LazyGroup

if TYPE_CHECKING:
    from edgerun.cluster.home import Home

COMMANDS = {
    "up": ("cluster_up", "Take part, and show a code for devices that shall join."),
    "join": ("cluster_join", "Join with the code that another device shows, and take part."),
    "status": ("cluster_status", "What this device is, and whom it knows."),
    "devices": ("cluster_devices", "All devices, and whether they answer."),
    "top": ("cluster_top", "What all devices do, live."),
    "plan": ("cluster_plan", "Which devices should run a model, and how."),
    "forget": ("cluster_forget", "Put a device out."),
    "leave": ("cluster_leave", "Take this device out."),
}


class ClusterGroup(LazyGroup):
    """Those of `edgerun cluster`."""

    table = COMMANDS


@click.command(cls=ClusterGroup, short_help="Run a model on several devices at home.")
def command() -> None:
    """Several devices run a model together: each holds its share, and what they say to each other is sealed.

    `edgerun cluster up` on one, `edgerun cluster join CODE` on the others; then `edgerun run MODEL --cluster` on any.
    """


def own_home(name: str | None = None) -> Home:
    """This user's device; it gets its name (default: the machine's) when it is made."""
    from edgerun.cluster import check_installed

    check_installed()
    from edgerun.cluster.home import open_home
    from edgerun.paths import cache_dir, data_dir

    return open_home(Path(data_dir()), Path(cache_dir()), name or _machine_name())


def _machine_name() -> str:
    import platform
    import re

    found = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().split(".")[0])[:48].strip("-._")
    return found or "device"
