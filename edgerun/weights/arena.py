"""One large piece of memory, page-aligned, of which parts can be given back to the system and used again."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from edgerun.kernels.memory import first_multiple

LARGE_BYTES = 2 << 20  # of a large page


class Arena:
    """`bytes` (n_bytes rounded up to whole pages,) u8, zero; memory is taken page by page when it is written.

    large_pages: of 2 MiB where the system has them, from a boundary of such on. For what is written once and read
    often: reading goes through a new page of 4 KiB every fifty nanoseconds otherwise, and finding one takes longer than
    reading it. And for what a disk writes to past the page cache: of pages that lie scattered a read is cut into many
    requests.
    """

    def __init__(self, n_bytes: int, *, large_pages: bool = False) -> None:
        size = max(mmap.PAGESIZE, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        may_be_large = large_pages and size >= LARGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE")
        spare = LARGE_BYTES if may_be_large else 0  # so that it may begin where a large page does
        if hasattr(mmap, "MAP_PRIVATE"):  # a child of a fork gets a copy, not a share
            self._map = mmap.mmap(-1, size + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._map = mmap.mmap(-1, size + spare)
        everything = np.frombuffer(self._map, np.uint8)
        self._first = first_multiple(everything, LARGE_BYTES) if may_be_large else 0
        if may_be_large:  # the end is of small ones: of a large one that it does not fill, all would be taken
            with contextlib.suppress(OSError):  # a kernel built without them
                self._map.madvise(mmap.MADV_HUGEPAGE, self._first, size // LARGE_BYTES * LARGE_BYTES)
        self.bytes: NDArray[np.uint8] = everything[self._first : self._first + size]

    def release(self, offset: int, n_bytes: int) -> None:
        """Give a range of whole pages back; it reads as zeros until it is written again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, self._first + offset, n_bytes)
