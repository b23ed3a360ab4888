"""What the kernels of attention take: see `abi`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

# What both kinds of attention take first, in this order
_KeysAt = Annotated[int, "bytes from a page's first to the layer's keys"]
_ValuesAt = Annotated[int, "bytes from a page's first to the layer's values"]
_KeysStride = Annotated[int, "bytes from kv head to kv head in keys"]
_ValuesStride = Annotated[int, "bytes from kv head to kv head in values"]
_HeadDim = Annotated[int, "dimensions of a key"]
_HeadDimV = Annotated[int, "dimensions of a value"]
_Group = Annotated[int, "heads of a kv head"]
_Constants = Annotated[int, "address of f32 scale, softcap"]
_Scratch = Annotated[int, "address of the threads' scratch"]
_Busy = Annotated[int, "address of an int64 flag for each thread, all 0 before the first launch"]
_ScratchBytes = Annotated[int, "bytes of scratch for each thread"]


class AttentionDecode(NamedTuple):
    """Single rows, of any sequences, over f16, or over the formats of keys and values in the kernel's name. From byte
    128 on follows an `AttentionRow` for each. An item is (row, kv head, page of positions)."""

    keys_at: _KeysAt
    values_at: _ValuesAt
    keys_stride: _KeysStride
    values_stride: _ValuesStride
    head_dim: _HeadDim
    head_dim_v: _HeadDimV
    group: _Group
    constants: _Constants
    scratch: _Scratch
    busy: _Busy
    scratch_bytes: _ScratchBytes
    rows: Annotated[int, "how many rows follow"]


class AttentionRow(NamedTuple):
    """One row, which sees the positions first .. end - 1."""

    first_item: Annotated[int, "items of the rows before it"]
    q: Annotated[int, "address of (heads, head_dim) f32"]
    table: Annotated[int, "address of the sequence's page addresses"]
    first: Annotated[int, "first position"]
    end: Annotated[int, "end position"]
    parts: Annotated[int, "address of the result: for each head and page weighted values, maximum, sum, f32"]
    pages: Annotated[int, "pages of a head in the result"]
    unused_7: Annotated[int, "not used"] = 0


class AttentionPrompt(NamedTuple):
    """Many rows of one sequence. An item is (tile, kv head), later tiles first."""

    keys_at: _KeysAt
    values_at: _ValuesAt
    keys_stride: _KeysStride
    values_stride: _ValuesStride
    head_dim: _HeadDim
    head_dim_v: _HeadDimV
    group: _Group
    constants: _Constants
    scratch: _Scratch
    busy: _Busy
    scratch_bytes: _ScratchBytes
    q: Annotated[int, "address of (rows, heads, head_dim) f32"]
    table: Annotated[int, "address of the sequence's page addresses"]
    heads: Annotated[int, "heads"]
    out: Annotated[int, "address of (rows, heads, head_dim_v) f32"]
    rows: Annotated[int, "rows"]
    window: Annotated[int, "positions that a row sees; 0: all before it; -n: those of its own stretch of n"]
    start: Annotated[int, "position of the first row"]
    keys_format: Annotated[int, "0 f16, 1 q8_0, 2 q4_0 (see kv_formats.py)"]
    values_format: Annotated[int, "as of keys"]
    sinks: Annotated[int, "address of (heads,) f32, scores without a value; 0: none"]
    tile: Annotated[int, "rows of a tile"]


class AttentionMerge(NamedTuple):
    """Pages of a head joined in ascending order. From byte 128 on follows a `MergedRow` for each row. An item is
    (row, head)."""

    heads: Annotated[int, "heads"]
    head_dim_v: Annotated[int, "dimensions of a value"]
    sinks: Annotated[int, "address of (heads,) f32, scores without a value; 0: none"]


class MergedRow(NamedTuple):
    """One row."""

    parts: Annotated[int, "address of what attention_decode left"]
    pages: Annotated[int, "pages of a head"]
    out: Annotated[int, "address of (heads, head_dim_v) f32"]
    unused_3: Annotated[int, "not used"] = 0
