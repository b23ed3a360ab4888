"""How fast this machine is, in the few numbers that predict a model's speed; measured once and kept.

Decoding reads every active weight once a token, so it runs at the rate of a matrix-vector product; a prompt runs at the
rate of a matrix-matrix product; what is missing in memory comes at the disk's rate for pieces of an expert's size.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgerun.errors import FormatError
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import Kernels
from edgerun.paths import replace_file, temporary_folder
from edgerun.weights.flash import DEMAND, PIECE_BYTES, FlashReader, Piece, Reading

_ROWS, _COLS, _TOKENS = 16384, 16384, 128  # 144 MiB packed: no cache holds it
_PROBE_BYTES = 384 << 20
_READERS = 3


@dataclass(frozen=True)
class Rates:
    """decode_bytes_per_s: of packed weights in a matrix-vector product; prompt_ops_per_s: multiplications and additions
    of a matrix-matrix product; disk_bytes_per_s: random reads of `disk_piece_bytes`, past the page cache."""

    decode_bytes_per_s: float
    prompt_ops_per_s: float
    disk_bytes_per_s: float
    disk_piece_bytes: int


def measure_kernels(kernels: Kernels) -> tuple[float, float]:
    """(bytes/s of a product with one row, operations/s of one with many), Q4_0. About a second."""
    raw = np.random.default_rng(0).integers(0, 255, (_ROWS, GgmlType.Q4_0.row_bytes(_COLS)), np.uint8)
    raw.reshape(_ROWS, -1, 18)[:, :, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    matrix = kernels.pack(raw, GgmlType.Q4_0, _COLS)
    rates = []
    for tokens, turns in ((1, 61), (_TOKENS, 3)):
        x, out = np.ones((tokens, _COLS), np.float32), np.empty((tokens, _ROWS), np.float32)
        kernels.matmul(matrix, kernels.activations(x), out)
        took = []
        for _ in range(turns):
            began = time.perf_counter()
            kernels.matmul(matrix, kernels.activations(x), out)
            took.append(time.perf_counter() - began)
        rates.append(statistics.median(took))  # the best of them would not be what a token gets
    return matrix.n_bytes / rates[0], 2.0 * _ROWS * _COLS * _TOKENS / rates[1]


def measure_disk(path: Path, piece_bytes: int) -> float:
    """Bytes/s of random reads of a file in pieces of this size, several in flight; at most 384 MiB are read."""
    piece_bytes = max(4096, min(piece_bytes, PIECE_BYTES))
    size = path.stat().st_size
    if size < 2 * piece_bytes:
        raise FormatError(f"{path}: too small to measure the disk with")
    count = max(4, min(_PROBE_BYTES, size) // piece_bytes)
    places = np.random.default_rng().integers(0, (size - piece_bytes) // 4096 + 1, count) * 4096
    reader = FlashReader([path], threads=_READERS)
    try:
        reading = Reading(reader)
        pieces = [Piece(0, int(at), piece_bytes, "the probe", lambda view: None, reading.landed) for at in places]
        began = time.perf_counter()
        reading.begin(pieces, DEMAND)
        reading.wait()
        return count * piece_bytes / (time.perf_counter() - began)
    finally:
        reader.close()


@contextlib.contextmanager
def probe_file(folder: Path) -> Iterator[Path]:
    """A file of 384 MiB to measure a disk with, removed afterwards. OSError when there is no room."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    block = np.random.default_rng(0).bytes(PIECE_BYTES)
    with temporary_folder(folder) as own:
        path = own / "probe"
        with path.open("wb") as file:
            for _ in range(_PROBE_BYTES // PIECE_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        yield path


def load_rates(path: Path) -> Rates | None:
    """What `save_rates` wrote; None when there is nothing, or nothing that makes sense."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        piece = int(said.pop("disk_piece_bytes"))
        rates = Rates(**{key: float(value) for key, value in said.items()}, disk_piece_bytes=piece)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return rates if all(0 < value < 1e18 for value in asdict(rates).values()) else None


def save_rates(path: Path, rates: Rates) -> None:
    """Atomically. OSError when the folder cannot be written."""
    replace_file(path, [json.dumps(asdict(rates)).encode()])
