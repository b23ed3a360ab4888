"""Run a command under a hard memory limit (a control group, v1 or v2), page cache cold at the start. Needs root.

Memory that a virtual machine's guest touches for the first time, or again after its host took it back when it was free,
comes at a tenth of the rate of memory that was used just before. A machine that is in use has its free memory in the
page cache, full of other files: `used_by` makes that so.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Capped:
    """What came of it. `peak_bytes` is the kernel's count, page cache included."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int


def run_capped(
    command: list[str],
    limit_bytes: int,
    *,
    readahead_kb: int = 128,
    timeout_s: float = 600,
    used_by: Sequence[Path] = (),
) -> Capped:
    """Run and wait. The disk's readahead is set first: 128 KiB is Linux's usual default. used_by: files that the
    command does not read, which the page cache holds when it begins."""
    for queue in Path("/sys/block").glob("*/queue/read_ahead_kb"):
        queue.write_text(str(readahead_kb))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    read_through_page_cache(used_by)
    old = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if old else CGROUPS) / f"edgerun-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit_bytes))
        if not old and (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        done = subprocess.run(["sh", "-c", enter, "sh", *command], capture_output=True, text=True, timeout=timeout_s)
        peak = int((group / ("memory.max_usage_in_bytes" if old else "memory.peak")).read_text())
        return Capped(done.returncode, done.stdout, done.stderr, peak)
    finally:
        time.sleep(0.3)
        group.rmdir()


def read_through_page_cache(paths: Sequence[Path]) -> None:
    """All of these files, in order."""
    block = bytearray(4 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
