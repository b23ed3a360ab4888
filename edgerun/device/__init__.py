"""What the machine has: processor cores and features, memory and its limits."""

from edgerun.device.cpu import cpu_features, cpu_name, default_threads, physical_cores, usable_cpus
from edgerun.device.memory import MemoryLimits, memory_limits

__all__ = [
    "MemoryLimits",
    "cpu_features",
    "cpu_name",
    "default_threads",
    "memory_limits",
    "physical_cores",
    "usable_cpus",
]
