"""Which rows and columns of a model's tensors make a shard. They are read by ranges: of a tensor cut by rows nothing
else is read, of one cut by columns its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import UnsupportedError
from edgerun.formats.gguf import TensorInfo
from edgerun.models.shapes import known_tensors
from edgerun.models.share import LayerShare, Share, kv_heads_of, spec_of_share, units_of
from edgerun.models.spec import LayerNumbers, LayerUnits, ModelSpec
from edgerun.weights.catalog import EMBEDDING, HEAD, tensor_name

U8 = NDArray[np.uint8]

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

    stacked: ranges of columns that lie one below the other, not side by side: all rows of the first, then of the next.
    slices: what the rows of each matrix are divided into, each a matrix of its own."""

    name: str
    info: TensorInfo
    matrices: range
    rows: tuple[range, ...]
    cols: tuple[range, ...]
    stacked: bool = False
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
        return [(cols,) for cols in self.cols] if self.stacked and self.cols else [self.cols]

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
    parts = {tensor_name(layer, part): (layer, part) for layer, part in _layer_parts(spec, share)}
    for name, (shape, _) in known_tensors(spec_of_share(spec, share)).items():
        info = spec.tensors.get(name) if name != HEAD else spec.tensors.get(HEAD, spec.tensors[EMBEDDING])
        if info is None:
            continue
        cut = whole(name, info)
        if name == HEAD:
            cut = replace(cut, rows=(share.vocabulary,))
        elif name in parts:
            layer, part = parts[name]
            cut = _of_layer(cut, part, spec, spec.layers[layer], share.layers[layer])
            if share.units:
                cut = _in_units(cut, part, units_of(spec.layers[layer], share.layers[layer], share.units[layer]))
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
    from edgerun.models.plan import plan_of

    for layer, plan in enumerate(plan_of(spec_of_share(spec, share))):
        for part in plan.tensors:
            yield layer, part


def _of_layer(cut: Cut, part: str, spec: ModelSpec, numbers: LayerNumbers, share: LayerShare) -> Cut:
    """The part of a layer's tensor that a share has: rows of what makes something, columns of what takes it."""
    base, _, kind = part.partition(".")
    if kind == "scale":
        return cut
    heads, dim_k, dim_v = share.heads, numbers.head_dim_k, numbers.head_dim_v
    keys, values = ([range(h * dim, (h + 1) * dim) for h in kv_heads_of(numbers, heads)] for dim in (dim_k, dim_v))
    queries = range(heads.start * dim_k, heads.stop * dim_k)
    shared = base.endswith("_shexp")
    ff = share.shared if shared else share.ff
    name = base.removesuffix("_exps").removesuffix("_shexp")
    if base.endswith("_exps"):
        cut = replace(cut, matrices=share.experts)
    full = spec.family.qk_norm == "full"
    made: dict[str, tuple[range, ...]] = {  # what comes out, that is divided: rows of a matrix, numbers of a vector
        "attn_q": (queries,),
        "attn_k": tuple(keys),
        "attn_v": tuple(values),
        "attn_qkv": _fused(numbers, queries, keys, values),
        "ffn_gate": (ff,),
        "ffn_up": (ff, _after(numbers.d_ff, ff)) if spec.family.fused_gate_up and not numbers.n_experts else (ff,),
        "ffn_down_t": (ff,),
    }
    taken: dict[str, tuple[range, ...]] = {  # what goes in
        "attn_output": (range(heads.start * dim_v, heads.stop * dim_v),),
        "ffn_down": (ff,),
    }
    normed: dict[str, tuple[range, ...]] = {
        "attn_sub_norm": taken["attn_output"],
        "ffn_sub_norm": taken["ffn_down"],
        **({"attn_q_norm": made["attn_q"], "attn_k_norm": made["attn_k"]} if full else {}),
    }
    if name in normed:
        return replace(cut, cols=normed[name])
    if name in made:
        return replace(cut, cols=made[name]) if kind == "bias" else replace(cut, rows=made[name])
    if name in taken and kind != "bias":
        return replace(cut, cols=taken[name])
    return cut


def _in_units(cut: Cut, part: str, units: LayerUnits) -> Cut:
    """The same with the columns of each unit apart."""
    base, _, kind = part.partition(".")
    if kind or not (held := len((units.mixer if base == "attn_output" else units.feed_forward).held)):
        return cut
    if base in ("attn_output", "ffn_down", "ffn_down_shexp", "ffn_down_exps"):
        (cols,) = cut.cols
        unit = len(cols) // held
        return replace(cut, cols=tuple(cols[low : low + unit] for low in range(0, len(cols), unit)), stacked=True)
    return replace(cut, slices=held) if base in ("ffn_gate_exps", "ffn_up_exps") else cut


def _fused(numbers: LayerNumbers, queries: range, keys: list[range], values: list[range]) -> tuple[range, ...]:
    """Of queries, keys and values in one matrix."""
    q = numbers.n_heads * numbers.head_dim_k
    k = numbers.n_kv_heads * numbers.head_dim_k
    return (queries, *(_after(q, each) for each in keys), *(_after(q + k, each) for each in values))


def _after(first: int, part: range) -> range:
    return range(first + part.start, first + part.stop)
