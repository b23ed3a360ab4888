"""One large piece of memory, page-aligned, of which parts can be given back to the system and used again."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray


class Arena:
    """`bytes` (n_bytes rounded up to whole pages,) u8, zero; memory is taken page by page when it is written.

    large_pages: of 2 MiB where the system has them, for what is written once and read often. Reading goes through a new
    page of 4 KiB every fifty nanoseconds otherwise, and finding one takes longer than reading it.
    """

    def __init__(self, n_bytes: int, *, large_pages: bool = False) -> None:
        size = max(mmap.PAGESIZE, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        if hasattr(mmap, "MAP_PRIVATE"):  # a child of a fork gets a copy, not a share
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._map = mmap.mmap(-1, size)
        if large_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel built without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def release(self, offset: int, n_bytes: int) -> None:
        """Give a range of whole pages back; it reads as zeros until it is written again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, offset, n_bytes)
