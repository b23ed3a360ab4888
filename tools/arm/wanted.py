"""Run inside the emulated machine: which kernels tests will look for in the cache there, under which names.

Prints a JSON list of [instruction set, kernel, file, symbol] for those of the instruction sets in the arguments that
the processor can run, without those that are there.
"""

from __future__ import annotations

import json
import sys

from edgerun import paths
from edgerun.kernels.compile import entry_name, file_name
from edgerun.kernels.isa import ISAS, runs_here
from edgerun.kernels.kernel_code import SOURCES

FOLDER = paths.cache_dir() / "kernels"


def main() -> None:
    """See the module."""
    found = []
    for isa in (ISAS[name] for name in sys.argv[1:]):
        if not runs_here(isa):
            sys.exit(f"this processor cannot run {isa.name}")
        for kernel in SOURCES:
            if not (FOLDER / file_name(kernel, isa)).is_file():
                found.append((isa.name, kernel, file_name(kernel, isa), entry_name(kernel, isa)))
    print(json.dumps({"folder": str(FOLDER), "kernels": found}))


if __name__ == "__main__":
    main()
