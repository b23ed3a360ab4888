"""The bytes of an open file, read into memory of our own and never through a mapping.

A mapped page of a file that somebody cuts ends the process with SIGBUS when it is touched, and one of a file that is
rewritten in place is another model's. `pread` gives an error, or few bytes, instead; before each read the file's size
and time are compared with those it had when it was opened.
"""

from __future__ import annotations

import os
import threading
import weakref
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import EdgerunError, FormatError, NotFoundError, ReadError
from edgerun.paths import kind_of

U8 = NDArray[np.uint8]
_MOST_GAP_BYTES = 4096  # between rows that are read together: copying less is cheaper than another call

_seek_lock = threading.Lock()  # where there is no `preadv`: a descriptor has one position


class FileBytes:
    """A regular file, open for reading. Thread-safe, but `close` only when no read is under way.

    NotFoundError when there is no such file, FormatError when it is none, EdgerunError when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not kind_of(path):
            raise NotFoundError(f"{path}: there is no such file")
        if not path.is_file():
            raise FormatError(f"{path}: not a file")
        try:
            self._file = FileIO(path)  # which closes itself, also where Ctrl-C comes just after it was opened
        except OSError as error:
            raise EdgerunError(f"{path}: cannot be read: {error.strerror or error}") from error
        self._fd = self._file.fileno()
        self._closing = weakref.finalize(self, self._file.close)
        status = os.fstat(self._fd)
        self.size = status.st_size
        self.stamp = stamp_of(status)

    def check_unchanged(self) -> None:
        """ReadError when the file is not what it was when it was opened."""
        if not self._closing.alive:
            raise ValueError(f"{self.path} is closed")
        status = os.fstat(self._fd)
        if status.st_size < self.size:
            raise ReadError(
                f"{self.path}: was cut to {status.st_size} of {self.size} bytes while in use; "
                "put it back whole and load the model again"
            )
        if stamp_of(status) != self.stamp:
            raise ReadError(f"{self.path}: the file was changed while in use; load the model again")

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Bytes offset .. offset + n_bytes, which must be within the file. ReadError when they cannot be had."""
        self.check_unchanged()
        if hasattr(os, "pread"):
            try:
                data = os.pread(self._fd, n_bytes, offset)
            except OSError as error:
                raise self._cannot(offset, error) from error
            if len(data) == n_bytes:
                return data
        pieces = bytearray(n_bytes)  # more than a call gives, or than there is
        self.read_into(pieces, offset)
        return bytes(pieces)

    def read_into(self, target: Any, offset: int) -> None:
        """Fill a writable contiguous buffer from `offset` on. ReadError when the bytes cannot be had."""
        self.check_unchanged()
        view = memoryview(target).cast("B")
        try:
            while view:
                got = _read_at(self._fd, view, offset)
                if got <= 0:
                    raise ReadError(f"{self.path}: ends at byte {offset}; it was cut while in use")
                view, offset = view[got:], offset + got
        except ReadError:
            raise
        except OSError as error:
            raise self._cannot(offset, error) from error

    def read_array(self, offset: int, n_bytes: int) -> U8:
        """As `read`, a new array (n_bytes,) u8."""
        data = np.empty(n_bytes, np.uint8)
        if n_bytes:
            self.read_into(data, offset)
        return data

    def gather(self, offset: int, row_bytes: int, ids: NDArray[np.integer[Any]]) -> U8:
        """Rows `ids` (in any order, n >= 0) of a matrix that begins at `offset`: (n, row_bytes) u8. Neighbours are read
        together."""
        if len(ids) == 1:  # a token of a reply
            return self.read_array(offset + int(ids[0]) * row_bytes, row_bytes).reshape(1, row_bytes)
        wanted, place = np.unique(ids, return_inverse=True)
        rows = np.empty((len(wanted), row_bytes), np.uint8)
        ends = np.flatnonzero(np.diff(wanted) > 1 + _MOST_GAP_BYTES // row_bytes) + 1
        for run in np.split(np.arange(len(wanted)), ends) if len(wanted) else ():
            first, last, low = int(wanted[run[0]]), int(wanted[run[-1]]) + 1, int(run[0])
            if last - first == len(run):
                self.read_into(rows[low : low + len(run)], offset + first * row_bytes)
            else:
                span = self.read_array(offset + first * row_bytes, (last - first) * row_bytes)
                rows[low : low + len(run)] = span.reshape(-1, row_bytes)[wanted[run] - first]
        return rows[place]

    def close(self) -> None:
        """May be called twice."""
        self._closing()

    def _cannot(self, offset: int, error: OSError) -> ReadError:
        return ReadError(f"{self.path}: byte {offset} cannot be read: {error.strerror or error}")


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """(size in bytes, time of the last change in ns, inode): alike for a file that nobody wrote to."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _read_at(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)
