"""How fast this machine is, in the few numbers that predict a model's speed; measured once and kept.

Decoding reads every active weight once a token, so it runs at the rate of a matrix-vector product; a prompt runs at the
rate of a matrix-matrix product; what is missing in memory comes at the disk's rate for pieces of an expert's size. Both
products are measured for each type of weights that a model has: types without kernels are a hundred times slower.

Where a model's weights stay in the processor's last cache from token to token (of 300 MB on a server) it decodes half
as fast again, so both are measured.
"""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.device import memory_limits
from edgerun.errors import UntrustedError
from edgerun.events import EventSink, Notice, ignore
from edgerun.formats.gguf import GgmlType
from edgerun.kernels import Kernels, Matrix
from edgerun.kernels.pages import Span
from edgerun.kv import KvLayer, KvSequence, PagePool, layer_groups
from edgerun.paths import read_kept, write_kept
from edgerun.planning.slow_types import Types
from edgerun.weights.arena import Arena

PLAINEST = GgmlType.F16  # its products cost least beside reading: they tell the memory's own rate
_COLS, MEASURED_COLS = 4096, 2048  # decoding, and in a prompt, whose results would fill the caches else
_PIECE_MATRIX_BYTES = 16 << 20  # packed, of one matrix; several of them are what a token reads
_LEAST_BYTES = 64 << 20  # of all of them, and more where a cache would hold that
_MOST_BYTES = 1 << 62
_BEYOND_CACHE = 1.7  # so many times the last cache is read from memory
_LONGEST_S, _FEWEST_TURNS = 0.25, 3
_MEMORY_SHARE = 0.25  # of what is available, that measuring may take
_SLOW_MATRIX_BYTES = 1 << 20  # of a type without kernels, which is bound by computing
_ATTENDED = 2048  # positions
_NEW_BYTES = 256 << 20  # that the system is asked for
MEASURED_TOKENS = 256  # of a prompt, as a decoder takes it at a time
MOST_OTHERS = 0.10  # of the processors, that others may take while something is measured
TYPICAL_LAUNCH_S = 4e-6  # where it was not measured
_FILL = 0x11  # every byte of the weights: as a number of any type it is small, and no denormal


@dataclass(frozen=True)
class ProductRates:
    """Of matrices of one type. decode_bytes_per_s: of packed weights in a matrix-vector product, from memory;
    prompt_ops_per_s: multiplications and additions of a matrix-matrix product; cached_bytes_per_s: of weights that the
    last cache holds, None where that was not measured, and is as from memory."""

    decode_bytes_per_s: float
    prompt_ops_per_s: float
    cached_bytes_per_s: float | None = None


@dataclass(frozen=True)
class AttentionRates:
    """decode_bytes_per_s: of keys and values that one row sees; prompt_ops_per_s: multiplications and additions of many
    rows."""

    decode_bytes_per_s: float
    prompt_ops_per_s: float


@dataclass(frozen=True)
class Rates:
    """products: of each type that was measured; disk_bytes_per_s: random reads of `disk_piece_bytes`, past the page
    cache; attention: None where it was not measured, and is part of what products take longer in a model; launch_s: of
    an operation that has almost nothing to do, Python's share included; cache_bytes: of the processor's last cache, 0
    where that is not known; memory_bytes_per_s: memory's own rate, where it was asked for; others_share: of the
    processors, what other programs took meanwhile, so that all this may be too low; new_memory_bytes_per_s: at which
    the system gives a thread memory that is used for the first time, None where that is not known and counts for
    nothing."""

    products: Mapping[str, ProductRates]  # by `product_name`
    disk_bytes_per_s: float
    disk_piece_bytes: int
    attention: AttentionRates | None = None
    launch_s: float = TYPICAL_LAUNCH_S
    cache_bytes: int = 0
    memory_bytes_per_s: float | None = None
    others_share: float = 0.0
    new_memory_bytes_per_s: float | None = None

    @property
    def were_disturbed(self) -> bool:
        """Whether others took so much that it is worth measuring again."""
        return self.others_share > MOST_OTHERS

    def for_weights(self, token_bytes: float) -> Rates:
        """For a model of whose weights a token reads so many bytes: all of them stay in a cache that is three times as
        large (others use it too), none in one twice as large or smaller, since each pass drives out what the next one
        begins with."""
        share = min(1.0, max(0.0, self.cache_bytes / max(1.0, token_bytes) - 2))
        if not share:
            return self
        return replace(self, products={name: _partly_cached(each, share) for name, each in self.products.items()})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        products = {name: asdict(each) for name, each in self.products.items()}
        attention = None if self.attention is None else asdict(self.attention)
        return {**vars(self), "products": products, "attention": attention}


def _partly_cached(rates: ProductRates, share: float) -> ProductRates:
    if rates.cached_bytes_per_s is None:
        return rates
    byte_s = share / rates.cached_bytes_per_s + (1 - share) / rates.decode_bytes_per_s
    return replace(rates, decode_bytes_per_s=1 / byte_s)


def best_of(first: Rates, second: Rates) -> Rates:
    """Of two measurements of one machine in its own time: other programs can only make a rate lower. What was disturbed
    less says how far both are to be trusted."""
    products = {**first.products, **second.products}
    for name in first.products.keys() & second.products.keys():
        products[name] = ProductRates(*_larger(astuple(first.products[name]), astuple(second.products[name])))
    attention = first.attention or second.attention
    if first.attention is not None and second.attention is not None:
        attention = AttentionRates(*_larger(astuple(first.attention), astuple(second.attention)))
    rate = max(first.disk_bytes_per_s, second.disk_bytes_per_s)
    if not 0.5 <= first.disk_piece_bytes / second.disk_piece_bytes <= 2:
        rate = second.disk_bytes_per_s
    (memory,) = _larger([first.memory_bytes_per_s], [second.memory_bytes_per_s])
    (new,) = _larger([first.new_memory_bytes_per_s], [second.new_memory_bytes_per_s])
    return replace(
        second,
        products=products,
        attention=attention,
        disk_bytes_per_s=rate,
        launch_s=min(first.launch_s, second.launch_s),
        memory_bytes_per_s=memory,
        others_share=min(first.others_share, second.others_share),
        new_memory_bytes_per_s=new,
    )


def _larger(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Number by number; of one that is None the other."""
    return [max((each for each in pair if each is not None), default=None) for pair in zip(first, second, strict=True)]


def product_name(type: GgmlType, cols: int, types: Types) -> str:
    """Of matrices that have one rate: "Q4_0"; "Q5_0 x 640" for types without kernels, whose rate depends on the width
    too, because it decides what of numpy's intermediate results stays in a cache."""
    return type.name if types.has_kernels(type) else f"{type.name} x {cols}"


def measure_products(
    kernels: Kernels,
    type: GgmlType,
    cols: int,
    types: Types,
    cache_bytes: int = 0,
    *,
    weights_bytes: int | None = None,
) -> ProductRates:
    """The rates of matrices of this type, and for those without kernels of this width. cache_bytes: of the last cache,
    past which a model's weights are read; weights_bytes: of one model, whose own come from wherever so many do. About
    half a second."""
    kernels.prepare([type])
    if not types.has_kernels(type):
        matrix = filled_matrix(kernels, type, cols, _SLOW_MATRIX_BYTES)
        return ProductRates(_row_bytes_per_s(kernels, [matrix], 15), _prompt_ops_per_s(kernels, matrix, 3))
    matrices = _alike(kernels, type, min(_weight_bytes(cache_bytes), weights_bytes or _MOST_BYTES))
    square = kernels.packed_bytes(type, MEASURED_COLS, MEASURED_COLS)
    in_cache = [] if weights_bytes else matrices[: cache_bytes // 8 // _PIECE_MATRIX_BYTES]
    return ProductRates(
        _row_bytes_per_s(kernels, matrices, 21),
        _prompt_ops_per_s(kernels, filled_matrix(kernels, type, MEASURED_COLS, square), 11),
        _row_bytes_per_s(kernels, in_cache, 21) if in_cache else None,
    )


def memory_bytes_per_s(
    kernels: Kernels, types: Types, cache_bytes: int = 0, *, weights_bytes: int | None = None
) -> float | None:
    """Memory's own rate: that of the plainest product. None where it has no kernel. Arguments as of
    `measure_products`."""
    if not types.has_kernels(PLAINEST):
        return None
    kernels.prepare([PLAINEST])
    n_bytes = min(_weight_bytes(cache_bytes), weights_bytes or _MOST_BYTES)
    return _row_bytes_per_s(kernels, _alike(kernels, PLAINEST, n_bytes), 21)


def _weight_bytes(cache_bytes: int) -> int:
    """To measure with: more than a cache holds, but a part of what is available."""
    wanted = max(_LEAST_BYTES, int(_BEYOND_CACHE * cache_bytes))
    return max(_PIECE_MATRIX_BYTES, min(wanted, int(_MEMORY_SHARE * memory_limits().available_bytes)))


def _alike(kernels: Kernels, type: GgmlType, n_bytes: int) -> list[Matrix]:
    """Matrices of one size, copies of each other, of some `n_bytes` together."""
    first = filled_matrix(kernels, type, _COLS, _PIECE_MATRIX_BYTES)
    count, stride = max(1, n_bytes // first.n_bytes), -(-first.n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = Arena(count * stride, large_pages=True)  # as a model's weights lie
    matrices = []
    for low in range(0, count * stride, stride):
        own = memory.bytes[low : low + first.n_bytes]
        own[:] = first.data.reshape(-1)
        matrices.append(kernels.matrix_in(own, type, first.rows, first.cols))
    return matrices


def _row_bytes_per_s(kernels: Kernels, matrices: Sequence[Matrix], turns: int) -> float:
    """Of one row that passes all of them."""
    x, out = np.ones((1, matrices[0].cols), np.float32), np.empty((1, matrices[0].rows), np.float32)
    activations = kernels.activations(x)

    def once() -> None:
        for matrix in matrices:
            kernels.matmul(matrix, activations, out)

    return sum(matrix.n_bytes for matrix in matrices) / _typical_s(once, turns)


def _prompt_ops_per_s(kernels: Kernels, matrix: Matrix, turns: int) -> float:
    """Of a prompt's rows."""
    x, out = np.ones((MEASURED_TOKENS, matrix.cols), np.float32), np.empty((MEASURED_TOKENS, matrix.rows), np.float32)
    activations = kernels.activations(x)
    seconds = _typical_s(lambda: kernels.matmul(matrix, activations, out), turns)
    return 2.0 * matrix.rows * matrix.cols * MEASURED_TOKENS / seconds


def filled_matrix(kernels: Kernels, type: GgmlType, cols: int, n_bytes: int) -> Matrix:
    """A packed matrix to measure with, of some `n_bytes` and at least one group of rows."""
    group = kernels.row_group
    rows = group * max(1, n_bytes // kernels.packed_bytes(type, group, cols))
    size = kernels.packed_bytes(type, rows, cols)
    matrix = kernels.matrix_in(Arena(size, large_pages=True).bytes[:size], type, rows, cols)
    some = np.full((min(rows, group * max(1, 512 // group)), type.row_bytes(cols)), _FILL, np.uint8)
    for first in range(0, rows, len(some)):
        kernels.pack_rows(some[: rows - first], matrix, first)
    return matrix


def measure_attention(kernels: Kernels, heads: int = 32, kv_heads: int = 8, dim: int = 64) -> AttentionRates:
    """The rates of attention over 2,048 positions, as for a layer of these heads. A tenth of a second."""
    layer = KvLayer(kv_heads, dim, dim)
    positions = _ATTENDED
    sequence = KvSequence(PagePool(layer_groups([layer])), positions + MEASURED_TOKENS)
    for low in range(0, positions, MEASURED_TOKENS):
        sequence.reserve(MEASURED_TOKENS)
        some = np.full((MEASURED_TOKENS, kv_heads, dim), 0.01, np.float32)
        kernels.kv_write([Span(sequence.pages(0), low, MEASURED_TOKENS)], some, some)
        sequence.advance(MEASURED_TOKENS)

    def seconds(rows: int, turns: int) -> float:
        spans = [Span(sequence.pages(0), positions - rows, rows)]
        q, out = np.full((rows, heads, dim), 0.01, np.float32), np.empty((rows, heads, dim), np.float32)
        return _typical_s(lambda: kernels.attention(q, spans, out, scale=0.1, softcap=0.0, window=0), turns)

    one_s, many_s = seconds(1, 41), seconds(MEASURED_TOKENS, 5)
    sequence.release()
    n_bytes = positions * kv_heads * 2 * dim * 2  # f16
    seen = MEASURED_TOKENS * (positions - MEASURED_TOKENS) + MEASURED_TOKENS * (MEASURED_TOKENS + 1) // 2
    return AttentionRates(n_bytes / one_s, 4.0 * seen * heads * dim / many_s)


def measure_launch(kernels: Kernels) -> float:
    """Seconds of a launch that has almost nothing to do, Python's share of it included."""
    x, weight = np.ones((1, 64), np.float32), np.ones(64, np.float32)
    return _typical_s(lambda: kernels.rms_norm(x, weight, 1e-5, x), 200)


def measure_new_memory() -> float:
    """Bytes/s at which the system gives memory that is written for the first time, to one thread."""
    n_bytes = min(_NEW_BYTES, int(_MEMORY_SHARE * memory_limits().available_bytes)) // mmap.PAGESIZE * mmap.PAGESIZE
    memory = Arena(n_bytes)
    began = time.perf_counter()
    memory.bytes[:: mmap.PAGESIZE] = 1
    return len(memory.bytes) / (time.perf_counter() - began)


def _typical_s(once: Callable[[], None], turns: int) -> float:
    """What a third of the turns stays below, after one that is not counted: the best is not typical, and of a middle
    one other programs have a part too often. Fewer turns where they take long."""
    once()
    took: list[float] = []
    end = time.perf_counter() + _LONGEST_S
    while len(took) < turns and (len(took) < _FEWEST_TURNS or time.perf_counter() < end):
        began = time.perf_counter()
        once()
        took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 3]


def load_rates(path: Path, events: EventSink = ignore) -> Rates | None:
    """What `save_rates` wrote; None when there is nothing, or nothing that makes sense, or (with a Notice) something
    that others can have written."""
    try:
        rates = rates_kept(json.loads(read_kept(path)))
    except UntrustedError as error:
        events(Notice(f"this machine's speed is measured again: {error}"))
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    known = [n for each in rates.products.values() for n in astuple(each) if n is not None]
    known += [] if rates.attention is None else astuple(rates.attention)
    known += [n for n in (rates.memory_bytes_per_s, rates.new_memory_bytes_per_s) if n is not None]
    known += [rates.disk_bytes_per_s, rates.disk_piece_bytes, rates.launch_s]
    sensible = all(0 < n < 1e18 for n in known) and 0 <= rates.cache_bytes < 1e18 and 0 <= rates.others_share <= 1
    return rates if sensible else None


def rates_kept(said: Any) -> Rates:
    """Of what `as_kept` said. ValueError, TypeError, KeyError and others where it did not."""
    return Rates(
        products={str(name): _kept_product(each) for name, each in said["products"].items()},
        disk_bytes_per_s=float(said["disk_bytes_per_s"]),
        disk_piece_bytes=int(said["disk_piece_bytes"]),
        attention=None if said["attention"] is None else AttentionRates(*map(float, said["attention"])),
        launch_s=float(said["launch_s"]),
        cache_bytes=int(said["cache_bytes"]),
        memory_bytes_per_s=_number_or_none(said["memory_bytes_per_s"]),
        others_share=float(said["others_share"]),
        new_memory_bytes_per_s=_number_or_none(said["new_memory_bytes_per_s"]),
    )


def _number_or_none(said: Any) -> float | None:
    """ValueError, TypeError."""
    return None if said is None else float(said)


def _kept_product(said: Sequence[float | None]) -> ProductRates:
    """ValueError, TypeError."""
    decode, prompt, cached = said
    if decode is None or prompt is None:
        raise ValueError("a rate is missing")
    return ProductRates(float(decode), float(prompt), _number_or_none(cached))


def as_kept(rates: Rates) -> dict[str, Any]:
    """For JSON, and to be read by `rates_kept`."""
    return {
        **vars(rates),
        "products": {name: list(astuple(each)) for name, each in rates.products.items()},
        "attention": None if rates.attention is None else list(astuple(rates.attention)),
    }


def save_rates(path: Path, rates: Rates) -> None:
    """Atomically. OSError when the folder cannot be written."""
    write_kept(path, [json.dumps(as_kept(rates)).encode()])
