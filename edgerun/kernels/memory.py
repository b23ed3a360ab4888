"""Where arrays lie: kernels take addresses."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes of a cache's line
_from_buffer, _addressof = ctypes.c_char.from_buffer, ctypes.addressof


def address(array: Any) -> int:
    """Where an array's first element lies. (A quarter of the time of `array.ctypes.data`; decode asks often.)"""
    try:
        return _addressof(_from_buffer(array))
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.__array_interface__["data"][0])


def memory_at_line(n_bytes: int) -> NDArray[np.uint8]:
    """(n_bytes,) u8 that begin a line of the cache, holding anything. Numpy gives memory that is 16 bytes off, and then
    every row of a tile is read from two lines."""
    memory = np.empty(n_bytes + LINE, np.uint8)
    start = -address(memory) % LINE
    return memory[start : start + n_bytes]


def first_multiple(memory: NDArray[np.uint8], of: int) -> int:
    """Bytes from where memory begins to the first place whose address is a multiple of `of`."""
    return -address(memory) % of


@cache  # never dropped: kernels hold the addresses
def _constants(*values: float) -> tuple[int, Any]:
    """The address, and the array that keeps what lies there alive."""
    array = np.array(values, np.float32)
    return address(array), array


def constants(*values: float) -> int:
    """The address of these numbers as f32, which is good for ever."""
    return _constants(*values)[0]
