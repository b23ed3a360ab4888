"""NVIDIA's GPUs, by the driver's own library (NVML): a counter of millijoules, or milliwatts on older ones.

https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from edgerun.errors import NotFoundError, ReadError
from edgerun.profiling.energy.meter import Reading
from edgerun.profiling.energy.sampled import INTERVAL_S, PowerSampler

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")


class NvmlSource:
    """`Source` of GPUs whose driver counts millijoules."""

    is_estimate = False
    method = "NVML, the GPUs' counters"

    def __init__(self, nvml: Any, devices: list[Any]) -> None:
        self._nvml = nvml
        self._devices = devices
        self._first = self._counters()

    def read(self) -> Reading:
        spent = [(now - before) / 1e3 for now, before in zip(self._counters(), self._first, strict=True)]
        return Reading(sum(spent), {f"gpu {index}": joules for index, joules in enumerate(spent)})

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _counters(self) -> list[int]:
        found = []
        for device in self._devices:
            millijoules = ctypes.c_ulonglong()
            _check(self._nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)))
            found.append(millijoules.value)
        return found


def nvml_source(
    nvml: Any = None, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.perf_counter
) -> NvmlSource | PowerSampler:
    """NotFoundError without a driver or a GPU."""
    nvml = nvml or _library()
    if nvml.nvmlInit_v2():
        raise NotFoundError("this machine has no NVIDIA driver that answers")
    count = ctypes.c_uint()
    _check(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    devices = []
    for index in range(min(count.value, 64)):
        device = ctypes.c_void_p()
        _check(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)))
        devices.append(device)
    if not devices:
        raise NotFoundError("this machine has no NVIDIA GPU")
    try:
        return NvmlSource(nvml, devices)
    except ReadError:  # before Volta only the present power can be read

        def watts() -> dict[str, float]:
            found = {}
            for index, device in enumerate(devices):
                milliwatts = ctypes.c_uint()
                _check(nvml.nvmlDeviceGetPowerUsage(device, ctypes.byref(milliwatts)))
                found[f"gpu {index}"] = milliwatts.value / 1e3
            return found

        return PowerSampler("NVML, the GPUs' power", watts, interval_s=interval_s, clock=clock)


def _library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NotFoundError("this machine has no NVIDIA driver")


def _check(code: int) -> None:
    if code:
        raise ReadError(f"NVML refused with code {code}")
