"""How fast this device is, as it tells the others of its cluster."""

from __future__ import annotations

from edgerun import paths
from edgerun.events import EventSink, ignore
from edgerun.kernels import Kernels, load_kernels, load_sizes
from edgerun.planning.quick_rates import TYPE, QuickRates, kept_or_measured
from edgerun.planning.slow_types import Types


def device_rates(kernels: str = "auto", threads: int | None = None, events: EventSink = ignore) -> QuickRates:
    """Of this device with these options, as of `LoadOptions`; measured when it is first asked for, and kept."""

    def make() -> tuple[Kernels, Types]:
        return load_kernels(kernels, threads=threads, types=[TYPE], events=events), load_sizes(kernels)

    return kept_or_measured(paths.cache_dir() / f"quick-rates-{kernels}-{threads}.json", make)
