"""Cores and memory, on this machine and on made-up ones."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from edgerun.device import (
    cpu_features,
    cpu_name,
    default_threads,
    last_cache_bytes,
    memory_limits,
    physical_cores,
    usable_cpus,
)
from edgerun.device.cpu import cpu_quota

MIB = 1 << 20


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    limits = memory_limits()
    assert 0 < limits.available_bytes <= limits.total_bytes == psutil.virtual_memory().total
    assert 0 < limits.limit_bytes <= limits.total_bytes
    assert 1 <= default_threads() <= physical_cores() <= len(usable_cpus())
    assert cpu_name()
    assert all(isinstance(name, str) for name in cpu_features())


def test_cgroup_v2_limit_counts_page_cache_as_free(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app/worker\n",
            "sys/fs/cgroup/app/worker/memory.max": "max\n",
            "sys/fs/cgroup/app/worker/memory.current": f"{70 * MIB}\n",
            "sys/fs/cgroup/app/memory.max": f"{200 * MIB}\n",
            "sys/fs/cgroup/app/memory.current": f"{90 * MIB}\n",
            "sys/fs/cgroup/app/memory.stat": f"anon {50 * MIB}\nactive_file {10 * MIB}\ninactive_file {30 * MIB}\n",
        },
    )
    limits = memory_limits(tmp_path)
    assert limits.cgroup_limit_bytes == limits.limit_bytes == 200 * MIB
    assert limits.cgroup_used_bytes == 50 * MIB
    assert limits.available_bytes == 150 * MIB


def test_cgroup_v1_limit(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{100 * MIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{60 * MIB}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {20 * MIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
    )
    limits = memory_limits(tmp_path)
    assert (limits.cgroup_limit_bytes, limits.available_bytes) == (100 * MIB, 60 * MIB)
    assert cpu_quota(tmp_path) == 1.5


def test_host_path_inside_a_container_falls_back_to_the_mounted_root(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/0123\n",
            "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
    )
    assert memory_limits(tmp_path).limit_bytes == 64 * MIB
    assert cpu_quota(tmp_path) == 0.5
    assert default_threads(tmp_path) == 1


@pytest.mark.parametrize("text", ["", "max", "-1", "garbage", "9223372036854771712"])
def test_no_limit(tmp_path: Path, text: str) -> None:
    lay(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": text})
    limits = memory_limits(tmp_path)
    assert limits.cgroup_limit_bytes is None
    assert limits.limit_bytes == limits.total_bytes


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert memory_limits(tmp_path).cgroup_limit_bytes is None
    assert cpu_quota(tmp_path) is None


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu in range(4):
        core = f"{cpu % 2},{cpu % 2 + 2}\n"
        lay(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": core})
    assert physical_cores(frozenset(range(4)), tmp_path) == 2
    assert physical_cores(frozenset((1, 3)), tmp_path) == 1


def test_the_last_cache(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) == 0
    sizes = {0: ("Data", "48K"), 1: ("Instruction", "999999K"), 2: ("Unified", "2048K"), 3: ("Unified", "300M?")}
    for index, (kind, size) in sizes.items():
        folder = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        lay(tmp_path, {f"{folder}/type": kind, f"{folder}/size": size + "\n"})
    assert last_cache_bytes(tmp_path) == 2 << 20


def test_processor_name_from_cpuinfo(tmp_path: Path) -> None:
    lay(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast Chip 9\n"})
    assert cpu_name(tmp_path) == "Fast Chip 9"
