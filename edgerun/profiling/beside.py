"""The machine's rates just beside a run: measured by a process of its own, again and again, as somebody asks.

A machine that others share reads its memory twice as fast in one hour as in another, so what was measured at another
time tells little of a run. The process that runs the model measures nothing itself, so that its memory is the model's.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgerun.device import last_cache_bytes
from edgerun.errors import EdgerunError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import load_kernels, load_sizes
from edgerun.planning.disk_probe import DiskProbe
from edgerun.planning.missing_reads import MissingReads
from edgerun.planning.rates import (
    Rates,
    as_kept,
    best_of,
    measure_attention,
    measure_launch,
    measure_products,
    memory_bytes_per_s,
    product_name,
    rates_kept,
)
from edgerun.profiling.noise import NoiseMeter
from edgerun.weights import Catalog

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgerun.profiling.beside import work; work(json.loads(sys.argv[2]))"
)
_MOST_LINE = 1 << 20


class RatesBeside:
    """`measure` as often as wanted; `close` ends the process."""

    def __init__(self, reads: MissingReads, catalog: Catalog, *, kernels: str, threads: int) -> None:
        """Of what a model of this catalog needs."""
        sizes = load_sizes(kernels)
        products = {product_name(each.type, each.shape[-1], sizes): each for each in catalog.multiplied()}
        asked = {
            "kernels": kernels,
            "threads": threads,
            "products": [(each.type.name, each.shape[-1]) for each in products.values()],
            "weights_bytes": catalog.n_bytes,
            "path": str(reads.path),
            "piece_bytes": reads.probe_bytes,
            "readers": reads.threads,
        }
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def measure(self) -> Rates:
        """Now: some seconds, while this process waits. EdgerunError when the other one has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # they were asked for
        with contextlib.suppress(BrokenPipeError):  # it has ended: so does what it says
            stdin.write("measure\n")
            stdin.flush()
        line = stdout.readline(_MOST_LINE)
        if not line:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip()[-300:] or "it said nothing"
            raise EdgerunError(f"what measures this machine beside the model has ended: {said}")
        return rates_kept(json.loads(line))

    def close(self) -> None:
        """At once, whatever it does."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.terminate()
        self._process.wait()
        self._said.close()


def work(asked: dict[str, Any]) -> None:
    """The other process: a line of rates on stdout for every line on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this
    types = [(GgmlType[name], cols) for name, cols in asked["products"]]
    for _ in _lines():
        rates = _measured(asked, types)
        if rates.were_disturbed:
            rates = best_of(rates, _measured(asked, types))
        sys.stdout.write(json.dumps(as_kept(rates)) + "\n")
        sys.stdout.flush()


def _measured(asked: dict[str, Any], types: list[tuple[GgmlType, int]]) -> Rates:
    sizes, cache_bytes, piece_bytes = load_sizes(asked["kernels"]), last_cache_bytes(), asked["piece_bytes"]
    noise = NoiseMeter()
    kernels = load_kernels(asked["kernels"], threads=asked["threads"], types=[type for type, _ in types])
    with contextlib.closing(kernels), DiskProbe(Path(asked["path"]), piece_bytes, asked["readers"]) as probe:
        products = {}
        for type, cols in types:
            products[product_name(type, cols, sizes)] = measure_products(
                kernels, type, cols, sizes, cache_bytes, weights_bytes=asked["weights_bytes"]
            )
            probe.burst()
        memory = memory_bytes_per_s(kernels, sizes, cache_bytes, weights_bytes=asked["weights_bytes"])
        attention, launch_s = measure_attention(kernels), measure_launch(kernels)
        disk = probe.bytes_per_s()
    return Rates(products, disk, piece_bytes, attention, launch_s, 0, memory, noise.end([]).others_share)


def _lines() -> Iterator[str]:
    """Not ahead of their time, as iterating over a file would read them."""
    while line := sys.stdin.readline():
        yield line
