"""The processor: how many cores this process may use, and what they can do."""

from __future__ import annotations

import os
import platform
from math import ceil
from pathlib import Path

from edgerun.device.cgroup import controller_folders, read_number, read_text


def usable_cpus() -> frozenset[int]:
    """Numbers of the logical processors that the scheduler lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(cpus: frozenset[int] | None = None, root: Path = Path("/")) -> int:
    """How many cores stand behind `cpus` (default: `usable_cpus()`): hyper-threads of one core count once."""
    cpus = usable_cpus() if cpus is None else cpus
    siblings = {_siblings(cpu, root) for cpu in cpus}
    if "" not in siblings:
        return max(1, len(siblings))
    import psutil

    return max(1, min(psutil.cpu_count(logical=False) or len(cpus), len(cpus)))


def _siblings(cpu: int, root: Path) -> str:
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return read_text(folder / "core_cpus_list") or read_text(folder / "thread_siblings_list")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups above this process allow; None: no limit."""
    quotas = []
    for folder in controller_folders("cpu", root):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
            continue
        v1_quota = read_number(folder / "cpu.cfs_quota_us")
        v1_period = read_number(folder / "cpu.cfs_period_us")
        if v1_quota and v1_period:
            quotas.append(v1_quota / v1_period)
    return min(quotas, default=None)


def default_threads(root: Path = Path("/")) -> int:
    """Threads for kernels: the physical cores that this process may use, within its control group's quota.

    Decoding waits for memory; a second hyper-thread on a core only adds contention.
    """
    cores = physical_cores(root=root)
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def cpu_name(root: Path = Path("/")) -> str:
    """The processor as its maker calls it, or its architecture when that cannot be found out."""
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def last_cache_bytes(root: Path = Path("/")) -> int:
    """Of the largest cache that the first processor reads through, as Linux says; 0 where nobody says."""
    found = [0]
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = read_text(folder / "size")
        if size.endswith("K") and size[:-1].isdecimal() and read_text(folder / "type") != "Instruction":
            found.append(int(size[:-1]) << 10)
    return max(found) if max(found) < 1 << 40 else 0
