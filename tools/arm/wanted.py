"""Run inside the emulated machine: which kernels tests will look for in the cache there, under which names.

    python -m tools.arm.wanted ISA [--every]

Prints a JSON list of [instruction set, kernel, file, symbol] of what the tests of products and layers call on a set, or
of every kernel, without those that are there.
"""

from __future__ import annotations

import json
import sys

from edgerun import paths
from edgerun.kernels.compile import entry_name, file_name
from edgerun.kernels.isa import ISAS, runs_here
from edgerun.kernels.kernel_code import SOURCES
from tests.kernels.isas import needed_kernels

FOLDER = paths.cache_dir() / "kernels"
_OF_OTHER_TESTS = ("neurons_", "dequantize_")


def main() -> None:
    """See the module."""
    isa = ISAS[sys.argv[1]]
    if not runs_here(isa):
        sys.exit(f"this processor cannot run {isa.name}")
    every = "--every" in sys.argv
    kernels = SOURCES if every else [each for each in needed_kernels(isa) if not each.startswith(_OF_OTHER_TESTS)]
    found = [
        (isa.name, kernel, file_name(kernel, isa), entry_name(kernel, isa))
        for kernel in kernels
        if not (FOLDER / file_name(kernel, isa)).is_file()
    ]
    print(json.dumps({"folder": str(FOLDER), "kernels": found}))


if __name__ == "__main__":
    main()
