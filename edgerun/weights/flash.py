"""Reading weights from flash: threads that `pread` large aligned pieces, what is needed now before what may be.

Never page faults: a fault reads 4 KiB, or a readahead window of which most is not used, and stops a thread that
computes. Files are opened with O_DIRECT where the file system takes it, so that no page cache is filled; elsewhere
buffered, with readahead off and the pages dropped after use. Two to four reads in flight reach the bandwidth of an
SSD (design measurements; io_uring added nothing), pieces are 256 KiB to 4 MiB.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.device.threads import start_all
from edgerun.errors import ReadError
from edgerun.weights.arena import Arena

U8 = NDArray[np.uint8]

ALIGNMENT = 4096  # what O_DIRECT asks of offsets, sizes and memory at most
_SECTOR = 512  # and at least
PIECE_BYTES = 4 << 20
DEMAND, PREDICTED, BACKGROUND = 0, 1, 2  # priorities: smaller is sooner


@dataclass(frozen=True)
class Piece:
    """A range of a file, and who takes its bytes. `deliver` runs on a reader's thread; its view is valid until it
    returns. `failed` is called instead when the bytes cannot be had. `what` is named in errors. `target`: read to this
    memory; it, the offset and the size must be aligned, and the size is not bounded by PIECE_BYTES."""

    file: int
    offset: int
    n_bytes: int
    what: str
    deliver: Callable[[U8], None]
    failed: Callable[[Exception], None]
    target: U8 | None = None


@dataclass
class ReadStats:
    """What was read so far."""

    reads: int = 0
    n_bytes: int = 0
    busy_s: float = 0.0  # in which at least one read was under way
    errors: int = 0


class FlashReader:
    """Reader threads over some files.

    threads: reads in flight. direct: whether O_DIRECT may be used. Raises ReadError when a file cannot be opened.
    """

    def __init__(self, paths: Sequence[Path], *, threads: int = 3, direct: bool = True) -> None:
        self.stats = ReadStats()
        self._files = [WeightFile(path, direct) for path in paths]
        self._queue: list[tuple[int, int, Piece]] = []
        self._order = 0
        self._wake = threading.Condition()
        self._stopped = False
        self._under_way = 0  # reads
        self._busy_since = 0.0
        self.staging_bytes = threads * (PIECE_BYTES + 2 * ALIGNMENT)
        self._threads = [
            threading.Thread(target=self._work, name=f"edgerun-read-{index + 1}", daemon=True)
            for index in range(threads)
        ]
        start_all(self._threads, self.close)

    @property
    def is_direct(self) -> bool:
        """Whether all files are read past the page cache."""
        return all(file.direct for file in self._files)

    @property
    def waiting(self) -> int:
        """Pieces that no thread has begun."""
        return len(self._queue)

    def submit(self, pieces: Sequence[Piece], priority: int) -> None:
        """Queue some pieces; returns at once."""
        with self._wake:
            if self._stopped:
                raise ReadError("the reader was closed")
            for piece in pieces:
                self._order += 1
                heapq.heappush(self._queue, (priority, self._order, piece))
            self._wake.notify(len(pieces))

    def promote(self, pieces: Sequence[Piece]) -> None:
        """Of these, those that still wait become as urgent as what is needed now."""
        wanted = {id(piece) for piece in pieces}
        with self._wake:
            for index, (priority, order, piece) in enumerate(self._queue):
                if id(piece) in wanted and priority != DEMAND:
                    self._queue[index] = (DEMAND, order, piece)
            heapq.heapify(self._queue)

    def cancel(self, pieces: Sequence[Piece]) -> set[int]:
        """Take back those that no thread has begun; returns the `id`s of these. The others will be delivered."""
        wanted = {id(piece) for piece in pieces}
        with self._wake:
            gone = {id(entry[2]) for entry in self._queue if id(entry[2]) in wanted}
            if gone:
                self._queue = [entry for entry in self._queue if id(entry[2]) not in gone]
                heapq.heapify(self._queue)
        return gone

    def read_now(self, file: int, offset: int, n_bytes: int, what: str) -> U8:
        """Read on the calling thread, past the queue: for small things (a row of the embedding)."""
        staging = Arena(n_bytes + 2 * ALIGNMENT).bytes
        return self._files[file].read(offset, n_bytes, staging, what)

    def close(self) -> None:
        """Stop and join the threads; what waits is dropped, what is being read is delivered first."""
        with self._wake:
            self._stopped = True
            self._queue.clear()
            self._wake.notify_all()
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join()
        for file in self._files:
            file.close()

    def _work(self) -> None:
        staging = Arena(PIECE_BYTES + 2 * ALIGNMENT).bytes
        while True:
            with self._wake:
                while not self._queue and not self._stopped:
                    self._wake.wait()
                if self._stopped:
                    return
                piece = heapq.heappop(self._queue)[2]
                if not self._under_way:
                    self._busy_since = time.perf_counter()
                self._under_way += 1
            try:
                memory = staging if piece.target is None else piece.target
                try:
                    view = self._files[piece.file].read(piece.offset, piece.n_bytes, memory, piece.what)
                finally:
                    self._read_ended()
                piece.deliver(view)
            except Exception as error:  # noqa: BLE001 - a reader must live on; the error goes to who asked
                self.stats.errors += 1
                piece.failed(error)
                continue
            self.stats.reads += 1  # a lost update between threads only blurs a statistic
            self.stats.n_bytes += piece.n_bytes

    def _read_ended(self) -> None:
        with self._wake:
            now = time.perf_counter()
            self.stats.busy_s += now - self._busy_since  # told at once: reading may never pause
            self._busy_since = now
            self._under_way -= 1


class WeightFile:
    """One open file, read with `pread`. It must stay what it was when it was opened."""

    def __init__(self, path: Path, direct: bool) -> None:
        self._path = path
        try:
            self._fd, self._grain = _open(path, direct)
            self.direct = self._grain > 0
            status = os.fstat(self._fd)
        except OSError as error:
            raise ReadError(f"{path}: cannot be opened: {error.strerror or error}") from error
        self._size, self._changed_ns = status.st_size, status.st_mtime_ns

    def read(self, offset: int, n_bytes: int, staging: U8, what: str) -> U8:
        """Bytes offset .. offset + n_bytes as a view of `staging` (aligned, two blocks larger). ReadError."""
        grain = self._grain or ALIGNMENT
        low = offset // grain * grain
        size = -(-(offset + n_bytes - low) // grain) * grain
        done = 0
        try:
            status = os.fstat(self._fd)
            if status.st_size != self._size or status.st_mtime_ns != self._changed_ns:
                raise ReadError(f"{self._path}: the file was changed while in use; load the model again")
            while done < offset + n_bytes - low:
                got = os.preadv(self._fd, [staging[done:size].data], low + done)
                if got <= 0:
                    break
                done += got
                if done % grain and done < offset + n_bytes - low:
                    break  # only the end of a file gives a crooked number
        except ReadError:
            raise
        except OSError as error:
            raise ReadError(f"{self._path}: {what} cannot be read: {error.strerror or error}") from error
        if done < offset + n_bytes - low:
            raise ReadError(f"{self._path}: the file ends within {what}; it was cut off, download it again")
        if not self.direct:
            _forget(self._fd, low, size)
        return staging[offset - low : offset - low + n_bytes]

    def close(self) -> None:
        """No read may be under way."""
        os.close(self._fd)


def _open(path: Path, direct: bool) -> tuple[int, int]:
    """(descriptor, what offsets and sizes must be multiples of for O_DIRECT; 0: it is not used)."""
    flag: Any = getattr(os, "O_DIRECT", 0)
    if direct and flag:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
        except OSError:
            fd = -1  # tmpfs and others refuse the flag when opening
        if fd >= 0:
            memory = Arena(ALIGNMENT).bytes
            for grain in (
                _SECTOR,
                ALIGNMENT,
            ):  # small rows are read whole sectors, not whole pages, where it is allowed
                try:
                    os.preadv(fd, [memory[:grain].data], grain)
                except OSError:
                    continue  # others take the flag and refuse to read
                return fd, grain
            os.close(fd)
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd, 0


def _forget(fd: int, offset: int, n_bytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, n_bytes, os.POSIX_FADV_DONTNEED)
