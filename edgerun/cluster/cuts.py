"""Which rows and columns of a model's tensors make a shard. They are read by ranges: of a tensor cut by rows nothing
else is read, of one cut by columns its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.cluster.divided import Divided, layers_divided, units_held
from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import TensorInfo
from edgerun.models.plan import plan_of
from edgerun.models.shapes import known_tensors
from edgerun.models.share import Share, spec_of_share
from edgerun.models.spec import ModelSpec
from edgerun.weights.catalog import EMBEDDING, HEAD, tensor_name

U8 = NDArray[np.uint8]

_HEAD_BIAS = "output.bias"
_ROWS_AT_ONCE_BYTES = 8 << 20


class HasRows(Protocol):
    """Of `GgufFile`."""

    def rows(self, name: str, first: int, last: int, /) -> U8:
        """See `GgufFile.rows`."""
        ...


@dataclass(frozen=True)
class Cut:
    """A tensor of a shard, called `name` there: of each of `matrices` (experts; one for a matrix or a vector) the
    `rows`, range after range, and of these `cols`. A vector's numbers are its columns.

    stacks: into so many equal parts the columns are divided that lie one below the other, not side by side: all rows of
    the first, then of the next. 0: all lie side by side.
    slices: what the rows of each matrix are divided into, each a matrix of its own."""

    name: str
    info: TensorInfo
    matrices: range
    rows: tuple[range, ...]
    cols: tuple[range, ...]
    stacks: int = 0
    slices: int = 1

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """As the shard has it."""
        rows, cols = (sum(map(len, each)) for each in (self.rows, self.cols))
        turns, matrices = len(self._turns), len(self.matrices) * self.slices
        cols //= turns
        if len(self.info.shape) == 3:
            return matrices * turns, rows // self.slices, cols
        return (rows * turns, cols) if len(self.info.shape) == 2 else (cols,)

    @cached_property
    def _turns(self) -> list[tuple[range, ...]]:
        """Columns that lie side by side in the shard, turn after turn."""
        if not self.stacks:
            return [self.cols]
        size, ends = sum(map(len, self.cols)) // self.stacks, accumulate(map(len, self.cols))
        found: list[list[range]] = [[] for _ in range(self.stacks)]
        for cols, end in zip(self.cols, ends, strict=True):
            found[(end - 1) // size].append(cols)
        return [tuple(each) for each in found]

    @cached_property
    def row_bytes(self) -> int:
        """Of the shard's rows."""
        return self.info.type.row_bytes(self.shape[-1])

    @property
    def n_bytes(self) -> int:
        """Of the shard's tensor."""
        return self.row_bytes * prod(self.shape[:-1])

    @cached_property
    def _runs(self) -> list[tuple[int, int, int]]:
        """(turn, first row in the file, how many) of rows that follow each other in the shard."""
        height, turns = prod(self.info.shape[1:-1]) if len(self.info.shape) == 3 else 0, range(len(self._turns))
        return [(t, m * height + rows.start, len(rows)) for m in self.matrices for t in turns for rows in self.rows]

    def pieces(self, gguf: HasRows, first_byte: int = 0) -> Iterator[U8]:
        """The stored bytes from `first_byte` on, flat."""
        skip, step = first_byte, max(1, _ROWS_AT_ONCE_BYTES // self.info.row_bytes)
        columns_of = [self._column_bytes(turn) for turn in self._turns]
        held, rows = (0, 0), np.empty((0, 0), np.uint8)  # what was read last: turns want the same rows
        for turn, start, count in self._runs:
            whole = min(count, skip // self.row_bytes)
            skip -= whole * self.row_bytes
            for low in range(start + whole, start + count, step):
                wanted = low, min(low + step, start + count)
                if wanted != held:
                    held, rows = wanted, gguf.rows(self.info.name, *wanted)
                mine = np.concatenate([rows[:, part] for part in columns_of[turn]], axis=1).reshape(-1)
                yield mine[skip:]
                skip = 0

    def _column_bytes(self, turn: Sequence[range]) -> list[slice]:
        """Of each range of columns, in a row of the file. UnsupportedError where it would cut a block."""
        type_, found = self.info.type, []
        for cols in turn:
            if cols.start % type_.block_size or len(cols) % type_.block_size:
                raise UnsupportedError(f"{self.info.name}: columns {cols.start} to {cols.stop} are no whole blocks")
            low = cols.start // type_.block_size * type_.block_bytes
            found.append(slice(low, low + type_.row_bytes(len(cols)) if len(cols) else low))
        return found


def cuts_of(spec: ModelSpec, share: Share) -> list[Cut]:
    """All tensors of a shard of the model `spec` (with its tensors), in the order of their names in a plan.

    UnsupportedError for a model with tensors of which it is not known how they are cut."""
    found = []
    held, layers = units_held(spec, share), layers_divided(spec, share)
    parts = {tensor_name(layer, part): (layer, part) for layer, part in _layer_parts(spec, share)}
    for name, (shape, _) in known_tensors(spec_of_share(spec, share)).items():
        info = spec.tensors.get(name) if name != HEAD else spec.tensors.get(HEAD, spec.tensors[EMBEDDING])
        if info is None:
            continue
        cut = whole(name, info)
        if name == HEAD:
            cut = replace(cut, rows=(share.vocabulary,))
        elif name == _HEAD_BIAS:
            cut = replace(cut, cols=(share.vocabulary,))
        elif name in parts:
            layer, part = parts[name]
            if part in layers[layer].lacking:
                continue
            cut = _of_layer(cut, part, layers[layer], held[layer] if share.units else None)
        if cut.shape != shape:
            raise UnsupportedError(f"{name}: it is not known how this tensor is divided among devices")
        found.append(cut)
    return found


def whole(name: str, info: TensorInfo) -> Cut:
    """All of a tensor."""
    dims = info.shape
    rows = range(dims[-2]) if len(dims) > 1 else range(1)
    return Cut(name, info, range(dims[0] if len(dims) == 3 else 1), (rows,), (range(dims[-1]),))


def _layer_parts(spec: ModelSpec, share: Share) -> Iterator[tuple[int, str]]:
    for layer, plan in enumerate(plan_of(spec_of_share(spec, share))):
        for part in plan.tensors:
            yield layer, part


def _of_layer(cut: Cut, part: str, of: Divided, units: tuple[int, int] | None) -> Cut:
    """The part of a layer's tensor that a share has. units: of the mixer and the feed-forward, if sums are made of
    units: the columns of each lie apart then."""
    name, _, kind = part.partition(".") if part.endswith((".bias", ".scale", ".")) else (part, "", "")
    if name in of.matrices and kind:  # (experts, numbers) or (experts,)
        if len(cut.info.shape) == 1:
            return replace(cut, cols=(of.matrices[name],))
        return replace(cut, rows=(of.matrices[name],), cols=of.made.get(name, cut.cols))
    if name in of.matrices:
        cut = replace(cut, matrices=of.matrices[name])
    if kind == "scale":
        return cut
    if name in of.made:
        is_matrix = len(cut.info.shape) > 1
        cut = replace(cut, rows=of.made[name]) if is_matrix else replace(cut, cols=of.made[name])
        return replace(cut, slices=max(1, units[1])) if units is not None and name in of.slices else cut
    if name in of.taken and kind != "bias":
        held = 0 if units is None else units[name.startswith("ffn_")]
        return replace(cut, cols=of.taken[name], stacks=held)
    return cut
