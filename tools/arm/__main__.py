"""Kernel tests on emulated 64-bit ARM processors, for each instruction set on one that has just it.

    python -m tools.arm [--sets neon dotprod i8mm] [--folder DIR] [-- PYTEST-ARGUMENTS]

The first time it sets the machine up (`machine`: 30 s, needs a network). Kernels are compiled on this machine, for that
one, and put into its cache: Numba would take minutes under emulation. Two sets go side by side, since an emulated
processor has one core here. Without arguments for pytest, packing and products in a few shapes run, and layers: of
every type on NEON and with dot products, of one type of each kind on i8mm (`tests.kernels.isas`). Tests that start
programs cannot run there. Where no machine can be emulated it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgerun import paths
from edgerun.device import default_threads
from edgerun.kernels.compile import file_content
from edgerun.kernels.compile_processes import Job, compile_jobs
from edgerun.kernels.isa import ISAS
from edgerun.kernels.numba_target import Machine as Target
from edgerun.paths import kept_folder
from tools.arm.machine import CPU, TRIPLE, Machine, MissingError, set_up

PROCESSORS = {"neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}  # qemu's: the first two have
# nothing beyond the set, "max" has all there is
TESTS = ("tests/kernels/test_matmul.py", "tests/kernels/test_layer_ops.py")
# Of the products of every type: two rows of activations and seven, each also alone; weight rows that fill no group.
PART = "(not (native_formats or packing) or 2-37 or 7-37 or 21-) and not 43-2560"
_AT_ONCE = 2  # sets


def main() -> int:
    """0 when all tests passed, or there is no machine to run them on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument("--folder", type=Path, default=paths.cache_dir() / "arm")
    parser.add_argument("pytest", nargs="*", help="arguments to pytest instead of the tests named here")
    options = parser.parse_args()
    start = time.monotonic()
    try:
        machine = set_up(options.folder)
    except MissingError as error:
        print(f"SKIPPED: no ARM processor can be emulated here: {error}")
        return 0

    def test(name: str) -> bool:
        """Whether a set passes."""
        compiled = put_kernels(machine, name, every=bool(options.pytest))
        seconds = time.monotonic() - start
        tests = run_tests(machine, name, options.pytest)
        said = f"{name} on {PROCESSORS[name]}: {compiled} kernels compiled by {seconds:.0f} s"
        print(f"{tests.stdout}{tests.stderr}{said}, tested by {time.monotonic() - start:.0f} s", flush=True)
        return tests.returncode == 0

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return int(not all(list(pool.map(test, options.sets))))


def put_kernels(machine: Machine, isa_name: str, *, every: bool) -> int:
    """Compile what the machine's cache lacks for the tests named here, or for `every` test; how many that were."""
    wanted_by = [isa_name, *(["--every"] if every else [])]
    said = machine.run(PROCESSORS[isa_name], "-m", "tools.arm.wanted", *wanted_by).stdout
    wanted = json.loads(said)
    isa = ISAS[isa_name]
    target = Target(TRIPLE, CPU, ",".join(f"+{need}" for need in isa.needs), "default", "jitdefault")
    files = {kernel: file for _, kernel, file, _ in wanted["kernels"]}
    jobs = [Job(kernel, isa, symbol, target) for _, kernel, _, symbol in wanted["kernels"]]
    with kept_folder(Path(wanted["folder"]), make=True) as folder:
        # In other processes even if there is one core: a process compiles for one machine.
        for job, code in compile_jobs(jobs, max(2, default_threads())):
            folder.replace(files[job.name], [file_content(code)])
    return len(jobs)


def run_tests(machine: Machine, isa_name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """pytest, ended."""
    arguments = arguments or [*TESTS, "-k", f"{isa_name} and ({PART})"]
    command = ["-m", "pytest", "-p", "no:cacheprovider", "-n0", "-q", *arguments]
    return machine.run(PROCESSORS[isa_name], *command, check=False)


if __name__ == "__main__":
    sys.exit(main())
