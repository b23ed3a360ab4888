"""How much memory this process may have: the machine's, and a control group's when that is less."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgerun.device.cgroup import controller_folders, read_number, read_table, read_text

_C_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes. `available_bytes` is what can still be taken without swapping, page cache counted as free."""

    total_bytes: int
    available_bytes: int
    cgroup_limit_bytes: int | None = None  # the tightest limit on this process; None: none below the total
    cgroup_used_bytes: int = 0  # under that limit, page cache that can be dropped not counted

    @property
    def limit_bytes(self) -> int:
        """The most that this process could ever have."""
        if self.cgroup_limit_bytes is None:
            return self.total_bytes
        return min(self.total_bytes, self.cgroup_limit_bytes)


def memory_limits(root: Path = Path("/")) -> MemoryLimits:
    """Read the machine's memory and the control groups above this process."""
    import psutil

    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    tightest: tuple[int, int, int] | None = None  # what is left, limit, used
    for folder in controller_folders("memory", root):
        limit = read_number(folder / "memory.max")
        if limit is None:
            limit = read_number(folder / "memory.limit_in_bytes")
        if limit is None or limit >= total:
            continue
        used = _used_bytes(folder)
        left = max(0, limit - used)
        if tightest is None or left < tightest[0]:
            tightest = (left, limit, used)
    if tightest is None:
        return MemoryLimits(total, available)
    return MemoryLimits(total, min(available, tightest[0]), tightest[1], tightest[2])


@dataclass(frozen=True)
class ProcessMemory:
    """What this process holds now, in bytes: all of it, and the part that no file backs."""

    resident_bytes: int
    private_bytes: int


def process_memory() -> ProcessMemory:
    """Of this process. Where the system does not tell files' pages apart, all of it counts as private."""
    import psutil

    info = psutil.Process().memory_info()
    return ProcessMemory(int(info.rss), int(info.rss) - int(getattr(info, "shared", 0)))


def peak_bytes() -> int:
    """The most that this process has held at a time. (`ru_maxrss` would do, but Linux counts in it what the process
    was before it became this program.)"""
    status = read_text(Path("/proc/self/status"))
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    with contextlib.suppress(ImportError):  # Windows has no such module; psutil tells the same there
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) << (0 if sys.platform == "darwin" else 10)
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def page_faults() -> tuple[int, int]:
    """(major page faults, bytes read from disks) of this process so far; zeros where nobody counts them."""
    with contextlib.suppress(ImportError):
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return int(usage.ru_majflt), int(usage.ru_inblock) << 9
    return 0, 0


def give_back_free_memory() -> None:
    """Have the C library return what was freed and it still holds; where there is no way to ask, nothing happens."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _used_bytes(folder: Path) -> int:
    used = read_number(folder / "memory.current")
    if used is None:
        used = read_number(folder / "memory.usage_in_bytes") or 0
    stat = read_table(folder / "memory.stat")
    # v1 tells of the group alone and, with "total_", of the groups below it too, as usage_in_bytes does.
    droppable = sum(stat.get("total_" + name, stat.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, used - droppable)
