"""Numbers for the wire and from it: checks and arguments.

They are rounded and added on the calling thread, the one that sends and receives: all threads are at a product
meanwhile, and a wire takes far longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import RoundEighths, SumEighths
from edgerun.kernels.eighths import BLOCK, SPARE_BYTES, eighths_bytes
from edgerun.kernels.interface import F32, U8
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address


def round_eighths(launcher: Launcher, x: F32, out: U8) -> None:
    """See `eighths.Rounding.round_eighths`."""
    _check(x, [out])
    launcher.run_alone("round_eighths", RoundEighths(address(x), x.size, address(out)), -(-x.size // BLOCK))


def sum_eighths(launcher: Launcher, parts: Sequence[U8], out: F32, rounded: U8 | None) -> None:
    """See `eighths.Rounding.sum_eighths`."""
    _check(out, [*parts, *([] if rounded is None else [rounded])])
    places = np.array([address(part) for part in parts], np.int64)
    to = 0 if rounded is None else address(rounded)
    arguments = SumEighths(address(places), len(places), out.size, address(out), to)
    launcher.run_alone("sum_eighths", arguments, -(-out.size // BLOCK))


def _check(x: F32, parts: Sequence[U8]) -> None:
    n_bytes = eighths_bytes(x.size) + SPARE_BYTES
    if (
        not parts
        or not x.size
        or x.dtype != np.float32
        or not x.flags.c_contiguous
        or any(part.shape != (n_bytes,) or part.dtype != np.uint8 or not part.flags.c_contiguous for part in parts)
    ):
        shapes = [part.shape for part in parts]
        raise UsageError(f"{x.size} numbers as eighths take {n_bytes} bytes with those to spare, not {shapes}")
