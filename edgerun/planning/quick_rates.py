"""How fast a device is, beside others: three rates, measured in about a second once its kernels are compiled, and kept.
`rates` measures what predicts a model's speed, which takes longer."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from edgerun.device import cpu_name
from edgerun.errors import UntrustedError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import Kernels, Matrix
from edgerun.paths import read_kept, write_kept
from edgerun.planning.disk_probe import measure_disk, probe_file
from edgerun.planning.rates import filled_matrix
from edgerun.planning.slow_types import Types

TYPE = GgmlType.Q4_0  # what most models at home are near to
_COLS = 4096
_MATRIX_BYTES = 48 << 20  # packed: larger than the caches of what is at home
_PROMPT_BYTES = 4 << 20
_SLOW_BYTES = 1 << 19  # where a type has no kernels
_PROMPT_TOKENS = 64
_BUDGET_S = 0.25  # for each of the two products
_MOST_TURNS = 15
_PROBE_BYTES = 32 << 20  # written, and read past the page cache: two seconds of a slow card
_READ_BYTES = 1 << 20  # at once, as a streamed expert is


@dataclass(frozen=True)
class QuickRates:
    """weights_bytes_per_s: of packed weights that a token passes; prompt_ops_per_s: multiplications and additions of a
    prompt's products, both of Q4_0; disk_bytes_per_s: that are read of weights which are not in memory, 0 where that is
    not known."""

    weights_bytes_per_s: float
    prompt_ops_per_s: float
    disk_bytes_per_s: float = 0.0


def measure_quickly(kernels: Kernels, types: Types, folder: Path) -> QuickRates:
    """Of this machine with these kernels and their threads, and of the disk that `folder` is on."""
    kernels.prepare([TYPE])
    fast = types.has_kernels(TYPE)
    decode = filled_matrix(kernels, TYPE, _COLS, _MATRIX_BYTES if fast else _SLOW_BYTES)
    token_s = _median_s(_product(kernels, decode, 1))
    prompt = filled_matrix(kernels, TYPE, _COLS, _PROMPT_BYTES if fast else _SLOW_BYTES)
    prompt_s = _median_s(_product(kernels, prompt, _PROMPT_TOKENS))
    disk = 0.0
    with contextlib.suppress(OSError), probe_file(folder, _PROBE_BYTES) as probe:  # where there is no room
        disk = measure_disk(probe, _READ_BYTES)
    return QuickRates(decode.n_bytes / token_s, 2.0 * prompt.rows * prompt.cols * _PROMPT_TOKENS / prompt_s, disk)


def kept_or_measured(path: Path, make: Callable[[], tuple[Kernels, Types]]) -> QuickRates:
    """What is kept at `path` of this processor and the disk there, else measured and kept. `make`: kernels to measure
    with, which are closed afterwards."""
    with contextlib.suppress(OSError, UntrustedError, ValueError, TypeError, KeyError):
        said = json.loads(read_kept(path))
        found = QuickRates(*(float(said[field.name]) for field in fields(QuickRates)))
        if said["processor"] == cpu_name() and all(0 < each < 1e18 for each in vars(found).values()):
            return found
    kernels, types = make()
    with contextlib.closing(kernels):
        found = measure_quickly(kernels, types, path.parent)
    with contextlib.suppress(OSError):  # measured again next time
        write_kept(path, [json.dumps({"processor": cpu_name(), **vars(found)}).encode()])
    return found


def _product(kernels: Kernels, matrix: Matrix, tokens: int) -> Callable[[], None]:
    x, out = np.ones((tokens, matrix.cols), np.float32), np.empty((tokens, matrix.rows), np.float32)
    return lambda: kernels.matmul(matrix, kernels.activations(x), out)


def _median_s(once: Callable[[], None]) -> float:
    once()
    took: list[float] = []
    end = time.perf_counter() + _BUDGET_S
    while len(took) < _MOST_TURNS and (not took or time.perf_counter() < end):
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
