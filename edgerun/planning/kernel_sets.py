"""Which of the instruction sets that run here is the fastest: measured, because the order by features need not hold (a
processor may clock down for wide registers, or have them in two halves).

All threads together, as models run: the rates of products of one row and of a prompt (`rates.measure_products`) for
three types, of which most files consist. A set's speed is the geometric mean of them, relative to the first set's.
"""

from __future__ import annotations

import math

from edgerun.events import EventSink, Progress, ignore
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import load_kernels, load_sizes
from edgerun.kernels.choice import candidates
from edgerun.planning.rates import ProductRates, measure_products

TYPES = (GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K)


def measure_sets(*, threads: int | None = None, events: EventSink = ignore) -> dict[str, float]:
    """Speeds by name, relative to the first by the order; of a single set nothing is measured. Some seconds each, most
    of them for compiling what no start before has."""
    names = [isa.name for isa in candidates()]
    if len(names) == 1:
        return {names[0]: 1.0}
    speeds: dict[str, float] = {}
    for done, name in enumerate(names):
        events(Progress("measure instruction sets", done, len(names), "sets"))
        speeds[name] = _speed(name, threads, events)
    events(Progress("measure instruction sets", len(names), len(names), "sets"))
    return {name: round(speed / speeds[names[0]], 3) for name, speed in speeds.items()}


def _speed(name: str, threads: int | None, events: EventSink) -> float:
    """A mean of rates: of no unit, to be compared with other sets'."""
    kernels = load_kernels(name, threads=threads, events=events, types=TYPES)
    sizes = load_sizes(name)
    try:
        rates: list[ProductRates] = [measure_products(kernels, type, 0, sizes) for type in TYPES]
    finally:
        kernels.close()
    logs = [math.log(rate.decode_bytes_per_s) + math.log(rate.prompt_ops_per_s) for rate in rates]
    return math.exp(sum(logs) / (2 * len(logs)))
