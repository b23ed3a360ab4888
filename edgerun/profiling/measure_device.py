"""A device profile of this machine, measured. Takes some tens of seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from edgerun.device import cpu_features, cpu_name, last_cache_bytes, memory_limits, physical_cores
from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import load_kernels, load_sizes
from edgerun.planning.device_profile import DeviceProfile
from edgerun.planning.disk_probe import measure_disk, probe_file
from edgerun.planning.rates import (
    PLAINEST,
    measure_attention,
    measure_launch,
    measure_products,
    memory_bytes_per_s,
)
from edgerun.profiling.energy import EnergyMeter

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q3_K", "Q2_K", "IQ4_XS", "MXFP4")
_DISK_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
_COLS = 4096
_FEATURES = ("avx", "fma", "f16c", "gfni", "amx", "asimd", "i8mm", "bf16", "sve")  # beginnings of those that count


def measure_device(
    folder: Path,
    *,
    kernels: str = "auto",
    threads: int | None = None,
    types: Sequence[str] = TYPES,
    tdp_w: float | None = None,
    meter: EnergyMeter | None = None,
    events: EventSink = ignore,
) -> DeviceProfile:
    """Memory with 1 to n threads, the disk under `folder` by size, products by type, attention, and what one launch
    costs. OSError when the folder has no room for a file of 384 MiB."""
    wanted = [GgmlType[name] for name in types]
    steps = len(wanted) + len(_DISK_SIZES) + 2
    done = 0

    def progress() -> None:
        nonlocal done
        events(Progress("measure this machine", done, steps, "measurements"))
        done += 1

    sizes, cache_bytes = load_sizes(kernels), last_cache_bytes()
    count = threads or physical_cores()
    impl = load_kernels(kernels, threads=count, types=wanted, events=events)
    try:
        products = {}
        for type in wanted:
            progress()
            products[type.name] = measure_products(impl, type, _COLS, sizes, cache_bytes)
        progress()
        attention, launch_s, name = measure_attention(impl), measure_launch(impl), impl.name
    finally:
        impl.close()
    progress()
    bandwidth = {each: _bandwidth(kernels, each) for each in _thread_counts(count)}
    disk: dict[int, float] = {}
    with probe_file(folder) as probe:
        for size in _DISK_SIZES:
            progress()
            disk[size] = measure_disk(probe, size)
        sequential = _sequential(probe)
    progress()
    counts = meter is not None and meter.source is not None
    return DeviceProfile(
        name=f"{cpu_name()}, {count} threads",
        kind="measured",
        processor=cpu_name(),
        cores=physical_cores(),
        kernels=name,
        memory_bytes=memory_limits().total_bytes,
        memory_bandwidth=bandwidth,
        disk_random=disk,
        disk_sequential=sequential,
        products=products,
        attention=attention,
        launch_s=launch_s,
        cache_bytes=cache_bytes,
        features=tuple(name for name in sorted(cpu_features()) if name.startswith(_FEATURES)),
        energy=(meter.method,) if meter is not None and counts else (),
        tdp_w=tdp_w,
        idle_w=meter.measure_idle() if meter is not None and counts else None,
    )


def _thread_counts(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


def _bandwidth(kernels: str, threads: int) -> float:
    """Bytes/s that so many threads read from memory: of the plainest product, by floats."""
    impl = load_kernels(kernels, threads=threads, types=[PLAINEST])
    try:
        sizes = load_sizes(kernels)
        found = memory_bytes_per_s(impl, sizes, last_cache_bytes())
        return found or measure_products(impl, PLAINEST, _COLS, sizes).decode_bytes_per_s
    finally:
        impl.close()


def _sequential(path: Path) -> float:
    """Bytes/s of one thread that reads a file from front to end, past the page cache where that can be dropped."""
    block = 4 << 20
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, total = time.perf_counter(), 0
        while got := len(file.read(block)):
            total += got
        return total / (time.perf_counter() - began)
