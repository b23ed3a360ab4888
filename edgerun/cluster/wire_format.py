"""How numbers are written on the wire: exactly, in half the bytes, or in a bit more than a quarter.

`f32` little-endian floats. `f16` halves; what is too large for one becomes infinite. `q8` blocks of 32 numbers: an f32
scale, the largest magnitude / 127, for each block first, then all numbers as int8 multiples of their block's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.collective import F32
from edgerun.errors import UsageError

U8 = NDArray[np.uint8]
WireName = Literal["f32", "f16", "q8"]

BLOCK = 32  # numbers that share a scale in q8; whoever cuts an array for the wire cuts at multiples of it
_AT_ONCE = 1 << 14  # numbers, whole blocks: what is made on the way stays in the nearest caches
_LARGEST = np.float32(127)
_SMALLEST = np.float32(1e-36)  # a smaller scale has no inverse in f32: its block becomes zeros


class WireFormat(Protocol):
    """A way of writing numbers. Buffers belong to the caller and have exactly the size."""

    @property
    def code(self) -> int:
        """What stands in a frame's header."""

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was written."""

    def n_bytes(self, count: int) -> int:
        """Of `count` numbers."""

    def write(self, x: F32, out: U8) -> None:
        """`x` (flat) into `out` (n_bytes of its size)."""

    def read(self, data: U8, out: F32) -> None:
        """The numbers of `data` into `out` (flat)."""


@dataclass(frozen=True)
class Exact:
    code: int = 1
    is_exact: bool = True

    def n_bytes(self, count: int) -> int:
        return 4 * count

    def write(self, x: F32, out: U8) -> None:
        out[...] = x.view(np.uint8)

    def read(self, data: U8, out: F32) -> None:
        out.view(np.uint8)[...] = data


@dataclass(frozen=True)
class Halves:
    code: int = 2
    is_exact: bool = False

    def n_bytes(self, count: int) -> int:
        return 2 * count

    def write(self, x: F32, out: U8) -> None:
        with np.errstate(over="ignore"):
            out.view(np.float16)[...] = x

    def read(self, data: U8, out: F32) -> None:
        out[...] = data.view(np.float16)


@dataclass(frozen=True)
class Eighths:
    code: int = 3
    is_exact: bool = False

    def n_bytes(self, count: int) -> int:
        return 4 * _blocks(count) + count

    def write(self, x: F32, out: U8) -> None:
        blocks = _blocks(x.size)
        scales, levels = out[: 4 * blocks].view(np.float32), out[4 * blocks :].view(np.int8)
        for low in range(0, x.size, _AT_ONCE):
            some = x[low : low + _AT_ONCE]
            whole, first = some.size // BLOCK, low // BLOCK
            end = low + whole * BLOCK
            if whole:
                self._write(x[low:end].reshape(whole, BLOCK), scales[first : first + whole], levels[low:end])
            if end < low + some.size:
                self._write(x[end:][None], scales[first + whole :], levels[end:])

    def _write(self, x: F32, scales: F32, levels: NDArray[np.int8]) -> None:
        magnitudes = np.empty(x.T.shape, np.float32)  # so that blocks lie side by side: numpy is slow along short rows
        np.abs(x.T, out=magnitudes)
        np.divide(np.maximum.reduce(magnitudes, axis=0), _LARGEST, out=scales)
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > _SMALLEST)
        room = magnitudes.reshape(x.shape)
        with np.errstate(invalid="ignore"):  # what is not finite makes its whole block so, by the scale
            np.multiply(x, inverse[:, None], out=room)
            np.rint(room, out=room)
            np.copyto(levels.reshape(x.shape), room, casting="unsafe")

    def read(self, data: U8, out: F32) -> None:
        blocks = _blocks(out.size)
        scales, levels = data[: 4 * blocks].view(np.float32), data[4 * blocks :].view(np.int8)
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


def _blocks(count: int) -> int:
    return -(-count // BLOCK)


EXACT, HALF = Exact(), Halves()
_FORMATS: dict[WireName, WireFormat] = {"f32": EXACT, "f16": HALF, "q8": Eighths()}
WIRE_NAMES: tuple[WireName, ...] = tuple(_FORMATS)


def wire_format(name: str) -> WireFormat:
    """The format of a name. UsageError for any other."""
    for known, found in _FORMATS.items():
        if known == name:
            return found
    raise UsageError(f"no wire format is called {name!r}; there are {', '.join(WIRE_NAMES)}")
