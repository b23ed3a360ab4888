"""The Python that runs this program, for those who start processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def find_interpreter() -> str | None:
    """Its path, also where Python is embedded in another program; None where there is no Python beside it (a frozen
    program)."""
    if getattr(sys, "frozen", False):
        return None
    stem = Path(sys.executable or "").name.lower()
    if stem.startswith(("python", "pypy")):
        return sys.executable
    names = ["python.exe"] if os.name == "nt" else [f"bin/python{sys.version_info[0]}.{sys.version_info[1]}"]
    for folder in (sys.prefix, sys.base_prefix):
        for name in names:
            if (Path(folder) / name).is_file():
                return str(Path(folder) / name)
    return None
