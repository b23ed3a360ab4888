"""Kernels compiled one by one, each in a process of its own, then loaded together in random orders.

    python -m tests.kernels.orders fill ISA DIRECTORY KERNEL ...
    python -m tests.kernels.orders load ISA DIRECTORY SEED COUNT [KERNEL ...]

`load` prints a line of JSON: [[seed of an order, [names of operations that were wrong]], ...], of wrong orders only.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgerun.kernels.compile import KernelCache
from edgerun.kernels.formats import FORMATS
from edgerun.kernels.isa import ISAS
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.simd_kernels import SimdKernels
from tests.kernels.operations import all_operations, product_operations, wrong_operations

_ROOT = Path(__file__).resolve().parents[2]


def fill(isa: str, directory: Path, groups: Iterable[Sequence[str]]) -> None:
    """Compile each group of kernels in a process of its own, into one cache."""

    def compile_group(names: Sequence[str]) -> None:
        _python("fill", isa, directory, *names)

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(compile_group, groups))


def load(isa: str, directory: Path, seed: int, count: int, names: Sequence[str]) -> list[tuple[int, list[str]]]:
    """In another process: `count` times a new cache over the same files, kernels loaded in the order that seed + i
    shuffles them to, and every product (with `names`: of these kernels only) compared. Returns (seed, wrong ones)."""
    said = json.loads(_python("load", isa, directory, seed, count, *names))
    return [(int(at), wrong) for at, wrong in said]


def _python(*arguments: object) -> str:
    command = [sys.executable, "-m", "tests.kernels.orders", *map(str, arguments)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def _load(isa: str, directory: Path, seed: int, count: int, names: Sequence[str]) -> list[tuple[int, list[str]]]:
    types = tuple(type for type in FORMATS if f"matmul_{type.name.lower()}" in names)
    operations = product_operations(types) if names else all_operations()
    found = []
    for at in range(seed, seed + count):
        order = sorted(names or SOURCES)
        random.Random(at).shuffle(order)
        cache = KernelCache(ISAS[isa], directory)
        for name in order:
            cache.address(name)
        kernels = SimdKernels(ISAS[isa], cache, 2)
        wrong = wrong_operations(kernels, operations)
        kernels.close()
        if wrong:
            found.append((at, wrong))
    return found


if __name__ == "__main__":
    what, isa, directory, *rest = sys.argv[1:]
    if what == "fill":
        KernelCache(ISAS[isa], Path(directory)).prepare(rest)
    else:
        print(json.dumps(_load(isa, Path(directory), int(rest[0]), int(rest[1]), rest[2:])))
