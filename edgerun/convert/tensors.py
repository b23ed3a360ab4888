"""Weights on their way into a GGUF: which type each gets, and quantising them a few rows at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.convert.report import Fallback, Report
from edgerun.device import default_threads
from edgerun.errors import FormatError, UsageError
from edgerun.formats.gguf import GgmlType, GgufWriter
from edgerun.formats.quants import quantize

QUANT_TYPES = (
    GgmlType.Q4_0,
    GgmlType.Q4_1,
    GgmlType.Q5_0,
    GgmlType.Q5_1,
    GgmlType.Q8_0,
    GgmlType.Q2_K,
    GgmlType.Q3_K,
    GgmlType.Q4_K,
    GgmlType.Q5_K,
    GgmlType.Q6_K,
    GgmlType.IQ4_NL,
    GgmlType.IQ4_XS,
    GgmlType.MXFP4,
    GgmlType.TQ1_0,
    GgmlType.TQ2_0,
    GgmlType.Q1_0,
    GgmlType.Q2_0,
    GgmlType.F16,
    GgmlType.BF16,
    GgmlType.F32,
)
FOR_TRAINED_MODELS = (GgmlType.TQ1_0, GgmlType.TQ2_0, GgmlType.Q1_0, GgmlType.Q2_0)

# general.file_type: llama.h's LLAMA_FTYPE_* (K-quants as their "small" mixes, which are nearest to pure)
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16,
    "Q6_K": 18, "Q2_K": 21, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4": 38, "Q1_0": 40,
    "Q2_0": 41,
}  # fmt: skip
_FLOATS = (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
_PRECISE = (GgmlType.Q6_K, GgmlType.Q8_0, *_FLOATS)  # good enough for a head

# What llama-quantize takes where rows are no whole blocks; F16 where that does not fit either (and for all others)
_NARROWER = {
    GgmlType.Q2_K: GgmlType.Q4_0,
    GgmlType.Q3_K: GgmlType.Q4_0,
    GgmlType.Q4_K: GgmlType.Q5_0,
    GgmlType.Q5_K: GgmlType.Q5_1,
    GgmlType.Q6_K: GgmlType.Q8_0,
    GgmlType.IQ4_XS: GgmlType.IQ4_NL,
    GgmlType.TQ1_0: GgmlType.Q4_0,
    GgmlType.TQ2_0: GgmlType.Q4_0,
    GgmlType.Q1_0: GgmlType.Q4_0,
    GgmlType.Q2_0: GgmlType.Q4_0,
}
_PIECE_BYTES = 4 << 20
_NOT_WEIGHTS = (GgmlType.F64, GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64)


@dataclass(frozen=True)
class Source:
    """A float tensor that can be read in parts.

    `rows(start, stop)` gives (stop - start, cols) f32 of the tensor seen as (prod(shape[:-1]), cols).
    `type` is what it is stored as where it comes from, `raw` gives those bytes of rows where they can be had, `done()`
    is called when the tensor has been written.
    """

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    rows: Callable[[int, int], NDArray[np.float32]]
    raw: Callable[[int, int], NDArray[np.uint8]] | None = None
    done: Callable[[], None] = lambda: None

    @property
    def n_rows(self) -> int:
        """Rows of the tensor seen as a matrix."""
        return prod(self.shape[:-1])


def from_array(name: str, array: NDArray[np.float32], type_: GgmlType = GgmlType.F32) -> Source:
    """A Source over an array in memory (or mapped)."""
    matrix = array.reshape(-1, array.shape[-1])
    return Source(name, array.shape, type_, lambda start, stop: np.asarray(matrix[start:stop], np.float32))


def parse_quant(quant: str | GgmlType) -> GgmlType:
    """`"Q4_K"` or a GgmlType -> one of QUANT_TYPES. UsageError that lists them."""
    name = quant.name if isinstance(quant, GgmlType) else quant.strip().upper()
    for type_ in QUANT_TYPES:
        if type_.name == name:
            return type_
    raise UsageError(f"edgerun does not quantise to {quant!r}; it writes {', '.join(t.name for t in QUANT_TYPES)}")


_HALF = ("per_layer_model_proj", "altup_", "laurel_")  # small, and every layer of Gemma 3n and 4 depends on it


def stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Norms, biases, routers, convolutions and RoPE factors: small, and everything depends on them."""
    return (
        len(shape) < 2
        or not name.endswith(".weight")
        or any(part in name for part in ("_norm.", "ffn_gate_inp", "ssm_conv1d", "shortconv.conv"))
    )


def choose_type(name: str, shape: tuple[int, ...], wanted: GgmlType, *, is_head: bool) -> GgmlType:
    """The type of a weight when the file is to be `wanted`.

    The head (or the embedding that serves as one) is at least Q6_K, Q8_0 in files of MXFP4, and rows that are no whole
    blocks get the type that llama-quantize takes.
    """
    if stays_f32(name, shape):
        return GgmlType.F32
    if any(part in name for part in _HALF):
        return GgmlType.F16
    chosen = wanted
    if is_head and wanted not in _PRECISE:
        whole = shape[-1] % wanted.block_size == 0 and wanted is not GgmlType.MXFP4
        chosen = GgmlType.Q6_K if whole else GgmlType.Q8_0
    for type_ in (chosen, _NARROWER.get(chosen, GgmlType.F16)):
        if shape[-1] % type_.block_size == 0:
            return type_
    return GgmlType.F16


@dataclass
class Emitter:
    """Adds tensors to a writer in the wanted type (None: each as its source) and keeps account."""

    writer: GgufWriter
    wanted: GgmlType | None
    tied_head: bool
    types: Counter[str] = field(default_factory=Counter)
    fallbacks: list[Fallback] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_bytes: int = 0

    def add(self, source: Source) -> None:
        """Add a float tensor; it is read and quantised only when the file is written."""
        type_ = self._type_for(source)
        self.types[type_.name] += 1
        self.n_bytes += type_.row_bytes(source.shape[-1]) * source.n_rows
        self.writer.add_tensor(source.name, lambda: _pieces(source, type_), type_, source.shape)

    def _type_for(self, source: Source) -> GgmlType:
        if source.type in _NOT_WEIGHTS:
            return source.type
        if self.wanted is None:
            return GgmlType.F32 if stays_f32(source.name, source.shape) else source.type
        is_head = source.name == ("token_embd.weight" if self.tied_head else "output.weight")
        type_ = choose_type(source.name, source.shape, self.wanted, is_head=is_head)
        if not stays_f32(source.name, source.shape) and source.shape[-1] % self.wanted.block_size:
            reason = f"rows of {source.shape[-1]} weights are no whole blocks of {self.wanted.block_size}"
            self.fallbacks.append(Fallback(source.name, self.wanted.name, type_.name, reason))
        return type_

    def report(self, path: Path, architecture: str) -> Report:
        """What was written."""
        return Report(
            path,
            architecture,
            self.types.total(),
            self.n_bytes,
            dict(self.types),
            tuple(self.fallbacks),
            tuple(self.notes),
        )


def file_type(wanted: GgmlType | None, sources: Iterable[Source]) -> int:
    """`general.file_type`: of the type asked for, or of the type that most weights come in."""
    if wanted is None:
        weights: Counter[GgmlType] = Counter()
        for source in sources:
            if not stays_f32(source.name, source.shape):
                weights[source.type] += prod(source.shape)
        wanted = weights.most_common(1)[0][0] if weights else GgmlType.F32
    return _FILE_TYPES[wanted.name]


def _pieces(source: Source, type_: GgmlType) -> Iterator[NDArray[Any]]:
    """The stored bytes of a tensor, a few megabytes of weights at a time."""
    step = max(1, _PIECE_BYTES // (4 * source.shape[-1]))
    if type_ is source.type and source.raw is not None:
        for start in range(0, source.n_rows, step):
            yield source.raw(start, min(start + step, source.n_rows))
    else:

        def piece(start: int) -> NDArray[Any]:
            rows = source.rows(start, min(start + step, source.n_rows))
            if type_ is GgmlType.F32:
                return rows
            if not np.isfinite(rows).all():
                raise FormatError(f"{source.name} holds weights that are no numbers: they have no {type_.name}")
            return quantize(rows, type_)

        yield from _in_parallel(piece, range(0, source.n_rows, step))
    source.done()


def _in_parallel(make: Callable[[int], NDArray[Any]], starts: range) -> Iterator[NDArray[Any]]:
    """`make` of each start in order, on as many threads as this process has cores (at most 8: memory)."""
    workers = min(default_threads(), 8, len(starts))
    if workers < 2:
        yield from map(make, starts)
        return
    pool = ThreadPoolExecutor(workers, "quantize")
    pending: deque[Future[NDArray[Any]]] = deque()
    try:
        for start in starts:
            pending.append(pool.submit(make, start))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
