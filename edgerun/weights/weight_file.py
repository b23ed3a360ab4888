"""A file of weights, read with `pread` past the page cache where that is possible."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import ReadError
from edgerun.weights.arena import Arena

U8 = NDArray[np.uint8]

ALIGNMENT = 4096  # what O_DIRECT asks of offsets, sizes and memory at most
_SECTOR = 512  # and at least


class WeightFile:
    """One open file, read with `pread`. It must stay what it was when it was opened."""

    def __init__(self, path: Path, direct: bool) -> None:
        self._path = path
        try:
            self._file, self._grain = _open(path, direct)
            self._fd = self._file.fileno()
            self.direct = self._grain > 0
            status = os.fstat(self._fd)
        except OSError as error:
            raise ReadError(f"{path}: cannot be opened: {error.strerror or error}") from error
        self._size, self._changed_ns = status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """ReadError unless it is still what it was."""
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            raise ReadError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        if status.st_size != self._size or status.st_mtime_ns != self._changed_ns:
            raise ReadError(f"{self._path}: the file was changed while in use; load the model again")

    def read(self, offset: int, n_bytes: int, staging: U8, what: str) -> U8:
        """Bytes offset .. offset + n_bytes as a view of `staging` (aligned, two blocks larger). ReadError. To be called
        after `check`."""
        grain = self._grain or ALIGNMENT
        low = offset // grain * grain
        size = -(-(offset + n_bytes - low) // grain) * grain
        done = 0
        try:
            while done < offset + n_bytes - low:
                got = os.preadv(self._fd, [staging[done:size].data], low + done)
                if got <= 0:
                    break
                done += got
                if done % grain and done < offset + n_bytes - low:
                    break  # only the end of a file gives a crooked number
        except OSError as error:
            raise ReadError(f"{self._path}: {what} cannot be read: {error.strerror or error}") from error
        if done < offset + n_bytes - low:
            raise ReadError(f"{self._path}: the file ends within {what}; it was cut off, download it again")
        if not self.direct:
            _forget(self._fd, low, size)
        return staging[offset - low : offset - low + n_bytes]

    def close(self) -> None:
        """No read may be under way."""
        self._file.close()


def _open(path: Path, direct: bool) -> tuple[FileIO, int]:
    """(the file, what offsets and sizes must be multiples of for O_DIRECT; 0: it is not used)."""
    flag: Any = getattr(os, "O_DIRECT", 0)
    if direct and flag:
        with contextlib.suppress(OSError):  # tmpfs and others refuse the flag when opening
            file = FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag))
            memory = Arena(ALIGNMENT).bytes
            for grain in (_SECTOR, ALIGNMENT):  # small rows are read by whole sectors where that is allowed
                try:
                    os.preadv(file.fileno(), [memory[:grain].data], grain)
                except OSError:
                    continue  # others take the flag and refuse to read
                return file, grain
            file.close()
    file = FileIO(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file, 0


def _forget(fd: int, offset: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)
