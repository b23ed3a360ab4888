"""How fast this machine is, in the few numbers that predict a model's speed; measured once and kept.

Decoding reads every active weight once a token, so it runs at the rate of a matrix-vector product; a prompt runs at the
rate of a matrix-matrix product; what is missing in memory comes at the disk's rate for pieces of an expert's size. Both
products are measured for each type of weights that a model has: types without kernels are a hundred times slower.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.errors import FormatError, UntrustedError
from edgerun.events import EventSink, Notice, ignore
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import Kernels, Matrix
from edgerun.kernels.interface import F32
from edgerun.kernels.pages import Span
from edgerun.kv import KvLayer, KvSequence, PagePool, layer_groups
from edgerun.new_files import temporary_folder
from edgerun.paths import read_kept, write_kept
from edgerun.planning.slow_types import Types
from edgerun.weights.flash import DEMAND, PIECE_BYTES, FlashReader, Piece, Reading

PLAINEST = GgmlType.F16  # its products cost least beside reading: they tell the memory's own rate
_COLS = 4096
_MATRIX_BYTES = 144 << 20  # packed: no cache holds it
_SLOW_MATRIX_BYTES = 1 << 20  # of a type without kernels, which is bound by computing
_ATTENDED = 2048  # positions
_TOKENS = 256  # of a prompt, as a decoder takes it at a time
_PROBE_BYTES = 384 << 20
_READERS = 3
_FILL = 0x11  # every byte of the weights: as a number of any type it is small, and no denormal


@dataclass(frozen=True)
class ProductRates:
    """Of matrices of one type. decode_bytes_per_s: of packed weights in a matrix-vector product; prompt_ops_per_s:
    multiplications and additions of a matrix-matrix product."""

    decode_bytes_per_s: float
    prompt_ops_per_s: float


@dataclass(frozen=True)
class AttentionRates:
    """decode_bytes_per_s: of keys and values that one row sees; prompt_ops_per_s: multiplications and additions of many
    rows."""

    decode_bytes_per_s: float
    prompt_ops_per_s: float


@dataclass(frozen=True)
class Rates:
    """products: of each type that was measured; disk_bytes_per_s: random reads of `disk_piece_bytes`, past the page
    cache; attention: None where it was not measured, and is part of what products take longer in a model."""

    products: Mapping[str, ProductRates]  # by `product_name`
    disk_bytes_per_s: float
    disk_piece_bytes: int
    attention: AttentionRates | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        products = {name: asdict(each) for name, each in self.products.items()}
        attention = None if self.attention is None else asdict(self.attention)
        return {**vars(self), "products": products, "attention": attention}


def product_name(type: GgmlType, cols: int, types: Types) -> str:
    """Of matrices that have one rate: "Q4_0"; "Q5_0 x 640" for types without kernels, whose rate depends on the width
    too, because it decides what of numpy's intermediate results stays in a cache."""
    return type.name if types.has_kernels(type) else f"{type.name} x {cols}"


def measure_products(kernels: Kernels, type: GgmlType, cols: int, types: Types) -> ProductRates:
    """The rates of matrices of this type and width. About a second."""
    fast = types.has_kernels(type)
    cols = _COLS if fast else cols
    kernels.prepare([type])
    matrix = filled_matrix(kernels, type, cols, _MATRIX_BYTES if fast else _SLOW_MATRIX_BYTES)
    rows = matrix.rows
    took = []
    for tokens, turns in ((1, 61 if fast else 15), (_TOKENS, 3)):
        x, out = np.ones((tokens, cols), np.float32), np.empty((tokens, rows), np.float32)
        kernels.matmul(matrix, kernels.activations(x), out)
        took.append(statistics.median(_timed(kernels, matrix, x, out) for _ in range(turns)))  # the best is not typical
    return ProductRates(matrix.n_bytes / took[0], 2.0 * rows * cols * _TOKENS / took[1])


def filled_matrix(kernels: Kernels, type: GgmlType, cols: int, n_bytes: int) -> Matrix:
    """A packed matrix to measure with, of some `n_bytes` and at least one group of rows."""
    group = kernels.row_group
    rows = group * max(1, n_bytes // kernels.packed_bytes(type, group, cols))
    matrix = kernels.matrix_in(np.empty(kernels.packed_bytes(type, rows, cols), np.uint8), type, rows, cols)
    some = np.full((min(rows, group * max(1, 512 // group)), type.row_bytes(cols)), _FILL, np.uint8)
    for first in range(0, rows, len(some)):
        kernels.pack_rows(some[: rows - first], matrix, first)
    return matrix


def measure_attention(kernels: Kernels, heads: int = 32, kv_heads: int = 8, dim: int = 64) -> AttentionRates:
    """The rates of attention over 2,048 positions, as for a layer of these heads. A tenth of a second."""
    layer = KvLayer(kv_heads, dim, dim)
    positions, took = _ATTENDED, []
    sequence = KvSequence(PagePool(layer_groups([layer])), positions + _TOKENS)
    for low in range(0, positions, _TOKENS):
        sequence.reserve(_TOKENS)
        some = np.full((_TOKENS, kv_heads, dim), 0.01, np.float32)
        kernels.kv_write([Span(sequence.pages(0), low, _TOKENS)], some, some)
        sequence.advance(_TOKENS)
    for rows, turns in ((1, 41), (_TOKENS, 5)):
        spans = [Span(sequence.pages(0), positions - rows, rows)]
        q, out = np.full((rows, heads, dim), 0.01, np.float32), np.empty((rows, heads, dim), np.float32)

        def once(q: F32 = q, spans: list[Span] = spans, out: F32 = out) -> float:
            began = time.perf_counter()
            kernels.attention(q, spans, out, scale=0.1, softcap=0.0, window=0)
            return time.perf_counter() - began

        once()
        took.append(statistics.median(once() for _ in range(turns)))
    sequence.release()
    n_bytes = positions * kv_heads * 2 * dim * 2  # f16
    seen = _TOKENS * (positions - _TOKENS) + _TOKENS * (_TOKENS + 1) // 2
    return AttentionRates(n_bytes / took[0], 4.0 * seen * heads * dim / took[1])


def _timed(kernels: Kernels, matrix: Matrix, x: F32, out: F32) -> float:
    began = time.perf_counter()
    kernels.matmul(matrix, kernels.activations(x), out)
    return time.perf_counter() - began


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


def load_rates(path: Path, events: EventSink = ignore) -> Rates | None:
    """What `save_rates` wrote; None when there is nothing, or nothing that makes sense, or (with a Notice) something
    that others can have written."""
    try:
        said = json.loads(read_kept(path))
        products = {
            str(name): ProductRates(float(decode), float(prompt)) for name, (decode, prompt) in said["products"].items()
        }
        attention = None if said["attention"] is None else AttentionRates(*map(float, said["attention"]))
        rates = Rates(products, float(said["disk_bytes_per_s"]), int(said["disk_piece_bytes"]), attention)
    except UntrustedError as error:
        events(Notice(f"this machine's speed is measured again: {error}"))
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    numbers = [n for each in products.values() for n in astuple(each)]
    numbers += [] if attention is None else astuple(attention)
    sensible = all(0 < n < 1e18 for n in (*numbers, rates.disk_bytes_per_s, rates.disk_piece_bytes))
    return rates if sensible else None


def save_rates(path: Path, rates: Rates) -> None:
    """Atomically. OSError when the folder cannot be written."""
    said = {
        "products": {name: list(astuple(each)) for name, each in rates.products.items()},
        "disk_bytes_per_s": rates.disk_bytes_per_s,
        "disk_piece_bytes": rates.disk_piece_bytes,
        "attention": None if rates.attention is None else list(astuple(rates.attention)),
    }
    write_kept(path, [json.dumps(said).encode()])
