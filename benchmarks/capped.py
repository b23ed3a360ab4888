"""Run a command under a hard memory limit (a control group, v1 or v2), page cache cold at the start. Needs root."""

from __future__ import annotations

import os
import subprocess
import time
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


def run_capped(command: list[str], limit_bytes: int, *, readahead_kb: int = 128, timeout_s: float = 600) -> Capped:
    """Run and wait. The disk's readahead is set first: 128 KiB is Linux's usual default."""
    for queue in Path("/sys/block").glob("*/queue/read_ahead_kb"):
        queue.write_text(str(readahead_kb))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
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
