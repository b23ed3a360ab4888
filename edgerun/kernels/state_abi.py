"""What the kernels of recurrent layers take: a part of `abi`."""

from __future__ import annotations

from typing import Annotated, NamedTuple


class CausalConv(NamedTuple):
    """Every column's convolution over the inputs before and at each row, and its activation; see `states`. An item is
    a slice of 64 columns, all rows one after another."""

    u: Annotated[int, "address of (rows, cols) f32"]
    u_stride: Annotated[int, "bytes from row to row in u"]
    weight: Annotated[int, "address of (cols, taps) f32"]
    bias: Annotated[int, "address of (cols,) f32; 0: none"]
    out: Annotated[int, "address of (rows, cols) f32; may be u"]
    out_stride: Annotated[int, "bytes from row to row in out"]
    rows: Annotated[int, "rows"]
    cols: Annotated[int, "columns"]
    taps: Annotated[int, "rows that a result is made of"]
    silu: Annotated[int, "1: silu of the sum; 0: the sum"]
    table: Annotated[int, "address of (rows, 2) int64: addresses of the source's and the target's block of states"]
    states_at: Annotated[int, "bytes from a block's first to (taps - 1, cols) f32: the inputs before a row"]


class Scan(NamedTuple):
    """A recurrence over rows of one matrix a head, see `Kernels.scan`. The state's matrices (key_dim, value_dim) lie in
    groups of 16 columns, each (key_dim, columns). An item is (head, group), all rows one after another."""

    q: Annotated[int, "address of (rows, key heads, key_dim) f32"]
    q_stride: Annotated[int, "bytes from row to row in q"]
    k: Annotated[int, "address of (rows, key heads, key_dim) f32"]
    k_stride: Annotated[int, "bytes from row to row in k"]
    v: Annotated[int, "address of (rows, heads, value_dim) f32"]
    v_stride: Annotated[int, "bytes from row to row in v"]
    decay: Annotated[int, "address of (rows, heads) f32: what the matrix is multiplied by"]
    step: Annotated[int, "address of (rows, heads) f32: what is added is multiplied by"]
    skip: Annotated[int, "address of (heads,) f32: how much of v is added to the result; 0: none"]
    out: Annotated[int, "address of (rows, heads, value_dim) f32"]
    rows: Annotated[int, "rows"]
    heads: Annotated[int, "heads"]
    key_heads: Annotated[int, "key heads"]
    key_dim: Annotated[int, "dimensions of a key"]
    value_dim: Annotated[int, "dimensions of a value"]
    scale: Annotated[int, "address of an f32 that products with q are multiplied by"]
    delta: Annotated[int, "1: what the matrix says of the key is taken from v first"]
    turn: Annotated[int, "key heads that take turns: of turn * n heads, n = heads / key_heads, head j has j % turn"]
    table: Annotated[int, "address of (rows, 2) int64: addresses of the source's and the target's block of states"]
    states_at: Annotated[int, "bytes from a block's first to the matrices"]


class UnitHeads(NamedTuple):
    """x /= sqrt(sum of squares + eps), head by head, in place. An item is a row."""

    x: Annotated[int, "address of (rows, heads, dim) f32"]
    stride: Annotated[int, "bytes from row to row"]
    heads: Annotated[int, "heads"]
    dim: Annotated[int, "dimensions of a head"]
    eps: Annotated[int, "address of an f32"]


class ScanSteps(NamedTuple):
    """s = softplus(x + bias); decay = exp(s * a); step = sigmoid(gate), or s without a gate. An item is a row."""

    x: Annotated[int, "address of the first row's first head, f32"]
    gate: Annotated[int, "the same of the gate; 0: none"]
    stride: Annotated[int, "bytes from row to row in x"]
    gate_stride: Annotated[int, "bytes from row to row in the gate"]
    together: Annotated[int, "heads that lie side by side in x and gate"]
    group_stride: Annotated[int, "bytes from the first of so many heads to the first of the next in x and gate"]
    heads: Annotated[int, "heads"]
    bias: Annotated[int, "address of (heads,) f32"]
    a: Annotated[int, "address of (heads,) f32"]
    decay: Annotated[int, "address of (rows, heads) f32"]
    step: Annotated[int, "address of (rows, heads) f32"]


class GatedNorm(NamedTuple):
    """out = rms_norm(x) * silu(gate), or rms_norm(x * silu(gate)), of every group. An item is (row, group)."""

    x: Annotated[int, "address of (rows, groups, cols) f32"]
    gate: Annotated[int, "address of (rows, groups, cols) f32"]
    gate_stride: Annotated[int, "bytes from row to row in gate"]
    weight: Annotated[int, "address of the norm's weight, f32; 0: no norm"]
    weight_stride: Annotated[int, "bytes from group to group in weight; 0: the same for all"]
    out: Annotated[int, "address of (rows, groups, cols) f32; may be x"]
    groups: Annotated[int, "groups"]
    cols: Annotated[int, "columns of a group"]
    eps: Annotated[int, "address of an f32"]
    gate_first: Annotated[int, "1: the gate before the norm"]
