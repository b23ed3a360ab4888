"""Numbers in a bit more than a quarter of their bytes, as devices send each other: "q8" on the wire.

Of `count` numbers: an f32 scale, the largest magnitude / 127, of each block of 32, then every number as an int8
multiple of its block's scale. What is not finite makes its whole block so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

BLOCK = 32  # numbers that share a scale
SPARE_BYTES = BLOCK  # after what is written, or read, by kernels: they take vectors
SMALLEST = np.float32(1e-36)  # a smaller scale has no inverse in f32: its block becomes zeros
_LARGEST = np.float32(127)
_AT_ONCE = 1 << 14  # numbers, whole blocks: what is made on the way stays in the nearest caches


def eighths_bytes(count: int) -> int:
    """Of `count` numbers."""
    return 4 * -(-count // BLOCK) + count


def write_eighths(x: F32, out: U8) -> None:
    """`x` (n,) into `out` (eighths_bytes of n)."""
    scales, levels = _divided(out, x.size)
    for low in range(0, x.size, _AT_ONCE):
        some = x[low : low + _AT_ONCE]
        whole, first = some.size // BLOCK, low // BLOCK
        end = low + whole * BLOCK
        if whole:
            _write(x[low:end].reshape(whole, BLOCK), scales[first : first + whole], levels[low:end])
        if end < low + some.size:
            _write(x[end:][None], scales[first + whole :], levels[end:])


def read_eighths(data: U8, out: F32) -> None:
    """The numbers of `data` into `out` (n,)."""
    scales, levels = _divided(data, out.size)
    for low in range(0, out.size, _AT_ONCE):
        some = out[low : low + _AT_ONCE]
        whole, first = some.size // BLOCK, low // BLOCK
        end = low + whole * BLOCK
        shape = (whole, BLOCK)
        np.multiply(
            levels[low:end].reshape(shape), scales[first : first + whole, None], out=out[low:end].reshape(shape)
        )
        if end < low + some.size:
            np.multiply(levels[end:], scales[first + whole], out=out[end:])


class Rounding(Protocol):
    """Who rounds and adds: kernels, or numpy, to the same bits. All bytes of numbers have SPARE_BYTES more behind them,
    which may be overwritten."""

    def round_eighths(self, x: F32, out: U8) -> None:
        """x (n,) into out (eighths_bytes of n + SPARE_BYTES,)."""

    def sum_eighths(self, parts: Sequence[U8], out: F32, rounded: U8 | None = None) -> None:
        """out (n,) = the sum of the numbers of all parts, added in their order. rounded: where it is written, too;
        `out` is then what is read from there."""


class PlainRounding:
    """By numpy."""

    def round_eighths(self, x: F32, out: U8) -> None:
        write_eighths(x, out[:-SPARE_BYTES])

    def sum_eighths(self, parts: Sequence[U8], out: F32, rounded: U8 | None = None) -> None:
        read_eighths(parts[0][:-SPARE_BYTES], out)
        scratch = np.empty_like(out)
        for part in parts[1:]:
            read_eighths(part[:-SPARE_BYTES], scratch)
            out += scratch
        if rounded is not None:
            self.round_eighths(out, rounded)
            read_eighths(rounded[:-SPARE_BYTES], out)


def _divided(data: U8, count: int) -> tuple[F32, NDArray[np.int8]]:
    """Scales and levels of so many numbers."""
    first = 4 * -(-count // BLOCK)
    return data[:first].view(np.float32), data[first : first + count].view(np.int8)


def _write(x: F32, scales: F32, levels: NDArray[np.int8]) -> None:
    magnitudes = np.empty(x.T.shape, np.float32)  # so that blocks lie side by side: numpy is slow along short rows
    np.abs(x.T, out=magnitudes)
    np.divide(np.maximum.reduce(magnitudes, axis=0), _LARGEST, out=scales)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > SMALLEST)
    room = magnitudes.reshape(x.shape)
    with np.errstate(invalid="ignore"):
        scales[~np.isfinite(scales)] = np.nan
        np.multiply(x, inverse[:, None], out=room)
        np.rint(room, out=room)
        np.copyto(levels.reshape(x.shape), room, casting="unsafe")
