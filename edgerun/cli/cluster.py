"""`edgerun cluster`: its commands, one file each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

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


class ClusterGroup(click.Group):
    """Imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"edgerun.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


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
