"""Kernels that are compiled already, for devices of a benchmark, each of which has a home of its own."""

from __future__ import annotations

import os
from pathlib import Path

from edgerun.kernels.choice import choose
from edgerun.kernels.compile import file_name
from edgerun.kernels.kernel_code import SOURCES
from edgerun.paths import cache_dir


def share_kernels(home: Path) -> None:
    """Those of this user are the device's, too: links to the same files."""
    there = home / "cache" / "edgerun" / "kernels"
    there.mkdir(parents=True, mode=0o700, exist_ok=True)
    for folder in (home / "cache", home / "cache" / "edgerun"):
        folder.chmod(0o700)
    for kernel in SOURCES:
        name = file_name(kernel, choose("auto"))
        if (cache_dir() / "kernels" / name).is_file() and not (there / name).exists():
            os.link(cache_dir() / "kernels" / name, there / name)
