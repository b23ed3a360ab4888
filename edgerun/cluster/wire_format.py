"""How numbers are written on the wire: exactly, in half the bytes, or in a bit more than a quarter.

`f32` little-endian floats. `f16` halves; what is too large for one becomes infinite. `q8`: see `kernels.eighths`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.collective import F32
from edgerun.errors import UsageError
from edgerun.kernels.eighths import eighths_bytes, read_eighths, write_eighths

U8 = NDArray[np.uint8]
WireName = Literal["f32", "f16", "q8"]


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
        return eighths_bytes(count)

    def write(self, x: F32, out: U8) -> None:
        write_eighths(x, out)

    def read(self, data: U8, out: F32) -> None:
        read_eighths(data, out)


EXACT, HALF = Exact(), Halves()
_FORMATS: dict[WireName, WireFormat] = {"f32": EXACT, "f16": HALF, "q8": Eighths()}
WIRE_NAMES: tuple[WireName, ...] = tuple(_FORMATS)


def wire_format(name: str) -> WireFormat:
    """The format of a name. UsageError for any other."""
    for known, found in _FORMATS.items():
        if known == name:
            return found
    raise UsageError(f"no wire format is called {name!r}; there are {', '.join(WIRE_NAMES)}")
