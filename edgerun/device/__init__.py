"""What the machine has: processor cores and features, memory and its limits."""

from edgerun.device.cpu import cpu_name, default_threads, last_cache_bytes, physical_cores, usable_cpus
from edgerun.device.cpu_features import cpu_features
from edgerun.device.memory import (
    MemoryLimits,
    ProcessMemory,
    give_back_free_memory,
    memory_limits,
    page_faults,
    peak_bytes,
    process_memory,
)

__all__ = [
    "MemoryLimits",
    "ProcessMemory",
    "cpu_features",
    "cpu_name",
    "default_threads",
    "give_back_free_memory",
    "last_cache_bytes",
    "memory_limits",
    "page_faults",
    "peak_bytes",
    "physical_cores",
    "process_memory",
    "usable_cpus",
]
