"""How fast a disk gives random places of a file, past the page cache.

A disk that others share, as a virtual machine's is, gives twice as much in one third of a second as in the next. So
what predicts a run is measured in bursts that lie some tenths of a second apart, between other measurements.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from edgerun.errors import FormatError
from edgerun.new_files import temporary_folder
from edgerun.weights.flash import DEMAND, PIECE_BYTES, FlashReader, Piece, Reading

_PROBE_BYTES = 384 << 20  # at once
# A burst is long beside its first reads, which are slower: with pauses after 96 MiB each a disk gives 0.9 of its rate
_BURST_BYTES, _BURSTS, _PAUSE_S = 192 << 20, 8, 0.15
_LONGEST_S = 2.0  # of reading, of a slow disk


class DiskProbe:
    """Reads of `piece_bytes`, `threads` at once, of one file. FormatError for a file that is too small."""

    def __init__(self, path: Path, piece_bytes: int, threads: int = 3) -> None:
        self._piece_bytes = max(4096, min(piece_bytes, PIECE_BYTES))
        self._file_bytes = path.stat().st_size
        if self._file_bytes < 2 * self._piece_bytes:
            raise FormatError(f"{path}: too small to measure the disk with")
        self._reader = FlashReader([path], threads=threads)
        self._n_bytes, self._spent_s, self._bursts = 0, 0.0, 0

    def __enter__(self) -> DiskProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def read(self, n_bytes: int) -> None:
        """So much of it, at least four pieces, as fast as it comes."""
        count = max(4, min(n_bytes, self._file_bytes) // self._piece_bytes)
        last = (self._file_bytes - self._piece_bytes) // 4096
        places = np.random.default_rng().integers(0, last + 1, count) * 4096
        reading = Reading(self._reader)
        pieces = [Piece(0, int(at), self._piece_bytes, "the probe", lambda view: None, reading.landed) for at in places]
        began = time.perf_counter()
        reading.begin(pieces, DEMAND)
        reading.wait()
        self._spent_s += time.perf_counter() - began
        self._n_bytes += count * self._piece_bytes

    def burst(self) -> None:
        """Read a little, unless enough was read."""
        if not self._is_enough:
            self._bursts += 1
            self.read(_BURST_BYTES)

    @property
    def _is_enough(self) -> bool:
        """All bursts, as much as a small file has, or what a slow disk gives in some seconds."""
        return self._bursts >= _BURSTS or self._n_bytes >= self._file_bytes or self._spent_s >= _LONGEST_S

    @property
    def seen_bytes_per_s(self) -> float:
        """Of all that was read so far."""
        return self._n_bytes / self._spent_s

    def bytes_per_s(self) -> float:
        """The same, once all bursts were read."""
        while not self._is_enough:
            time.sleep(_PAUSE_S)
            self.burst()
        return self.seen_bytes_per_s


def measure_disk(path: Path, piece_bytes: int, threads: int = 3) -> float:
    """Bytes/s of random reads of a file in pieces of this size, `threads` at once, in one go; at most 384 MiB are read.
    FormatError for a file that is too small."""
    with DiskProbe(path, piece_bytes, threads) as probe:
        probe.read(_PROBE_BYTES)
        return probe.seen_bytes_per_s


@contextlib.contextmanager
def probe_file(folder: Path, n_bytes: int = _PROBE_BYTES) -> Iterator[Path]:
    """A file of whole pieces of 4 MiB to measure a disk with, removed afterwards. OSError when there is no room."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    block = np.random.default_rng(0).bytes(PIECE_BYTES)
    with temporary_folder(folder) as own:
        path = own / "probe"
        with path.open("wb") as file:
            for _ in range(n_bytes // PIECE_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        yield path
