"""What recurrent layers compute, in plain numpy: row after row, each from the states that the one before left."""

from __future__ import annotations

import ctypes

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.interface import F32, ConvActivation
from edgerun.kernels.states import StateRows, check_states


def causal_conv(u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation) -> None:
    """See `interface.Kernels.causal_conv`."""
    check_conv(u, weight, bias, states, out, activation)
    layout = states.layout
    for row, (source, target) in enumerate(states.table.tolist()):
        if not target:
            continue
        seen = np.concatenate([_floats(source + layout.conv_at, layout.conv_rows, layout.conv_cols), u[row : row + 1]])
        total: F32 = np.zeros(layout.conv_cols, np.float32) if bias is None else bias.copy()
        for tap in range(layout.conv_rows + 1):
            total += seen[tap] * weight[:, tap]
        if activation == "silu":
            with np.errstate(over="ignore"):
                total /= np.float32(1) + np.exp(-total)
        out[row] = total
        _floats(target + layout.conv_at, layout.conv_rows, layout.conv_cols)[:] = seen[1:]


def scan(q: F32, k: F32, v: F32, decay: F32, beta: F32 | None, states: StateRows, out: F32) -> None:
    """See `interface.Kernels.scan`."""
    check_scan(q, k, v, decay, beta, states, out)
    layout, (rows, heads, _) = states.layout, v.shape
    shape = heads * layout.key_dim, layout.value_dim
    key_heads = np.arange(heads) % k.shape[1]
    for row in range(rows):
        source, target = states.table[row].tolist()
        if not target:
            continue
        matrices = _floats(target + layout.matrices_at, *shape).reshape(heads, layout.key_dim, layout.value_dim)
        if source != target:
            matrices[:] = _floats(source + layout.matrices_at, *shape).reshape(matrices.shape)
        matrices *= np.exp(decay[row])[:, None, None]
        keys = k[row, key_heads]
        change = v[row]
        if beta is not None:
            change = (change - (keys[:, :, None] * matrices).sum(axis=1)) * beta[row][:, None]
        matrices += keys[:, :, None] * change[:, None, :]
        out[row] = (q[row, key_heads][:, :, None] * matrices).sum(axis=1)


def check_conv(u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation) -> None:
    """UsageError unless all fit each other."""
    cols, taps = states.layout.conv_cols, states.layout.conv_rows + 1
    if activation not in ("none", "silu"):
        raise UsageError(f"unknown activation {activation!r} of a convolution; choose none or silu")
    if u.ndim != 2 or u.shape[1] != cols or weight.shape != (cols, taps) or out.shape != u.shape:
        raise UsageError(f"a convolution of {u.shape} with {weight.shape} into {out.shape}, {cols} columns are kept")
    if bias is not None and bias.shape != (cols,):
        raise UsageError(f"a convolution of {cols} columns with a bias of {bias.shape}")
    check_states(states, len(u))


def check_scan(q: F32, k: F32, v: F32, decay: F32, beta: F32 | None, states: StateRows, out: F32) -> None:
    """UsageError unless all fit each other."""
    layout, rows = states.layout, len(v)
    keys = (rows, k.shape[1], layout.key_dim)
    if v.shape != (rows, layout.heads, layout.value_dim) or out.shape != v.shape or layout.heads % k.shape[1]:
        raise UsageError(f"a scan of {v.shape} values into {out.shape}; {layout.heads} heads are kept")
    if (
        q.shape != keys
        or k.shape != keys
        or any(each is not None and each.shape != (rows, layout.heads) for each in (decay, beta))
    ):
        raise UsageError(f"a scan of {q.shape} queries, {k.shape} keys and {decay.shape} decays for {v.shape} values")
    check_states(states, rows)


def _floats(address: int, rows: int, cols: int) -> F32:
    """(rows, cols) f32 of memory, not a copy."""
    return np.ctypeslib.as_array((ctypes.c_float * (rows * cols)).from_address(address)).reshape(rows, cols)
