"""What recurrent layers compute, in plain numpy: row after row, each from the states that the one before left."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np

from edgerun.kernels.interface import F32, ConvActivation, ScanRule
from edgerun.kernels.state_checks import check_conv, check_gated_norm, check_heads, check_scan, check_steps
from edgerun.kernels.states import SCAN_COLUMNS, StateLayout, StateRows


def causal_conv(u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation) -> None:
    """See `interface.Kernels.causal_conv`."""
    check_conv(u, weight, bias, states, out, activation)
    layout = states.layout
    for row, (source, target) in enumerate(states.table.tolist()):
        if not target:
            out[row] = out[row - 1]
            continue
        seen = np.concatenate([_floats(source + layout.conv_at, layout.conv_rows, layout.conv_cols), u[row : row + 1]])
        total: F32 = np.zeros(layout.conv_cols, np.float32) if bias is None else bias.copy()
        for tap in range(layout.conv_rows + 1):
            total += seen[tap] * weight[:, tap]
        out[row] = _silu(total) if activation == "silu" else total
        _floats(target + layout.conv_at, layout.conv_rows, layout.conv_cols)[:] = seen[1:]


def scan(
    q: F32,
    k: F32,
    v: F32,
    decay: F32,
    step: F32,
    states: StateRows,
    out: F32,
    *,
    rule: ScanRule,
    turn: int,
    scale: float,
    skip: F32 | None,
) -> None:
    """See `interface.Kernels.scan`."""
    check_scan(q, k, v, decay, step, states, out, rule, turn, skip)
    layout, (rows, heads, _), key_heads = states.layout, v.shape, k.shape[1]
    shape = heads * layout.key_dim, layout.value_dim
    head, together = np.arange(heads), turn * (heads // key_heads)
    key_head = head // together * turn + head % turn
    for row in range(rows):
        source, target = states.table[row].tolist()
        if not target:
            out[row] = out[row - 1]
            continue
        matrices = _loaded(_floats(source + layout.matrices_at, *shape), layout)
        matrices *= decay[row][:, None, None]
        keys, change = k[row, key_head], v[row]
        with np.errstate(invalid="ignore"):
            if rule == "delta":
                change = change - (keys[:, :, None] * matrices).sum(axis=1)
            matrices += keys[:, :, None] * (change * step[row][:, None])[:, None, :]
            result = (q[row, key_head][:, :, None] * matrices).sum(axis=1) * np.float32(scale)
        out[row] = result if skip is None else result + skip[:, None] * v[row]
        _store(matrices, _floats(target + layout.matrices_at, *shape), layout)


def unit_heads(x: F32, eps: float) -> None:
    """See `interface.Kernels.unit_heads`."""
    check_heads(x)
    squares = np.square(x, dtype=np.float64).sum(axis=2, keepdims=True)
    x /= np.sqrt(squares + eps).astype(np.float32)


def scan_steps(x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
    """See `interface.Kernels.scan_steps`."""
    check_steps(x, gate, bias, a, decay, step)
    with np.errstate(over="ignore", invalid="ignore"):
        soft = np.logaddexp(np.float32(0), x.reshape(step.shape) + bias)
        decay[:] = np.exp(soft * a)
        step[:] = soft if gate is None else 1 / (1 + np.exp(-gate.reshape(step.shape)))


def gated_norm(x: F32, gate: F32, weight: F32 | None, eps: float, out: F32, *, gate_first: bool) -> None:
    """See `interface.Kernels.gated_norm`."""
    check_gated_norm(x, gate, weight, out)
    gates = _silu(gate.reshape(x.shape))
    result = x * gates if gate_first else x
    if weight is not None:
        mean_square = np.mean(np.square(result, dtype=np.float64), axis=2, keepdims=True)
        result = (result / np.sqrt(mean_square + eps)).astype(np.float32) * weight
    out[:] = result if gate_first else result * gates


def _loaded(stored: F32, layout: StateLayout) -> F32:
    """(heads, key_dim, value_dim), a copy, of matrices as they lie in a block: groups of columns one after another."""
    matrices = np.empty((layout.heads, layout.key_dim, layout.value_dim), np.float32)
    for cols, part in _groups(stored, layout):
        matrices[:, :, cols] = part
    return matrices


def _store(matrices: F32, stored: F32, layout: StateLayout) -> None:
    for cols, part in _groups(stored, layout):
        part[...] = matrices[:, :, cols]


def _groups(stored: F32, layout: StateLayout) -> Iterator[tuple[slice, F32]]:
    """Columns of all heads' matrices, and where they lie: (heads, key_dim, columns), not a copy."""
    by_head = stored.reshape(layout.heads, -1)
    for low in range(0, layout.value_dim, SCAN_COLUMNS):
        high = min(layout.value_dim, low + SCAN_COLUMNS)
        part = by_head[:, layout.key_dim * low : layout.key_dim * high]
        yield slice(low, high), part.reshape(layout.heads, layout.key_dim, high - low)


def _silu(x: F32) -> F32:
    with np.errstate(over="ignore"):
        return (x / (np.float32(1) + np.exp(-x))).astype(np.float32)


def _floats(address: int, rows: int, cols: int) -> F32:
    """(rows, cols) f32 of memory, not a copy."""
    return np.ctypeslib.as_array((ctypes.c_float * (rows * cols)).from_address(address)).reshape(rows, cols)
