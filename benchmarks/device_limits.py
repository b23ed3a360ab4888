"""A process held to what a weak device has, by control groups of version 1 or 2: a part of a core, of the memory, and a
disk of its own that is no faster than so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.capped import CGROUPS

_PERIOD_US = 10_000  # of the quota: a device that used its part of a long one up holds all others up for the rest
_OLD = "memory", "cpu", "blkio"  # controllers of version 1, each with folders of its own


@dataclass(frozen=True)
class Limits:
    """cores: a part of one, 0: as many as there are; memory_bytes: page cache included; disk_bytes_per_s: of reading,
    0: as fast as it is; file: which lies on that disk."""

    cores: float
    memory_bytes: int
    disk_bytes_per_s: int
    file: Path


class LimitedGroup:
    """The control group of one device."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def enter(self, process: int, number: int, threads: int = 1) -> None:
        """Hold a process to the limits. number: of the device. Devices take turns among cores, each on as many as it
        has threads: the quota is kept core by core, and a process that moves loses of it what it leaves behind (a tenth
        of it here)."""
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(process, {cores[(number + i) % len(cores)] for i in range(threads)})
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(process))

    @property
    def peak_bytes(self) -> int:
        """The kernel's count, page cache included."""
        old = self._folders[0] / "memory.max_usage_in_bytes"
        return int((old if old.exists() else self._folders[0] / "memory.peak").read_text())


@contextmanager
def limited(name: str, limits: Limits) -> Iterator[LimitedGroup]:
    """A control group of these limits, removed when its processes are gone."""
    old = (CGROUPS / "memory").is_dir()
    _remove_leftovers()
    called = f"edgerun-{os.getpid()}-{name}"
    folders = [CGROUPS / kind / called for kind in _OLD] if old else [CGROUPS / called]
    for folder in folders:
        folder.mkdir()
    try:
        (_limit_old if old else _limit_new)(folders, limits)
        yield LimitedGroup(folders)
    finally:
        time.sleep(0.3)
        for folder in folders:
            folder.rmdir()


def process_peak_bytes(process: int) -> int:
    """The most that a process has held at a time, without the page cache."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _limit_old(folders: list[Path], limits: Limits) -> None:
    memory, cpu, disk = folders
    (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
    if limits.cores:
        (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (cpu / "cpu.cfs_quota_us").write_text(str(int(limits.cores * _PERIOD_US)))
    if limits.disk_bytes_per_s:
        (disk / "blkio.throttle.read_bps_device").write_text(f"{_disk_of(limits.file)} {limits.disk_bytes_per_s}")


def _limit_new(folders: list[Path], limits: Limits) -> None:
    (folder,) = folders
    (folder / "memory.max").write_text(str(limits.memory_bytes))
    if limits.cores:
        (folder / "cpu.max").write_text(f"{int(limits.cores * _PERIOD_US)} {_PERIOD_US}")
    if limits.disk_bytes_per_s:
        (folder / "io.max").write_text(f"{_disk_of(limits.file)} rbps={limits.disk_bytes_per_s}")


def _disk_of(file: Path) -> str:
    """The numbers of the whole disk that a file lies on: parts of it cannot be limited."""
    device = file.stat().st_dev
    known = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    whole = known.resolve().parent if (known / "partition").exists() else known
    return (whole / "dev").read_text().strip()


def _remove_leftovers() -> None:
    """Control groups of runs that were killed before they could remove them."""
    for group in (*CGROUPS.glob("*/edgerun-*-*"), *CGROUPS.glob("edgerun-*-*")):
        owner = group.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(OSError):  # a process is still in it
                group.rmdir()
