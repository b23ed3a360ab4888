"""What recurrent layers' operations are given must fit each other: compiled kernels trust shapes and strides."""

from __future__ import annotations

from edgerun.errors import UsageError
from edgerun.kernels.interface import F32, ConvActivation, ScanRule
from edgerun.kernels.states import StateRows, check_states


def check_conv(u: F32, weight: F32, bias: F32 | None, states: StateRows, out: F32, activation: ConvActivation) -> None:
    """UsageError unless all fit each other."""
    cols, taps = states.layout.conv_cols, states.layout.conv_rows + 1
    if activation not in ("none", "silu"):
        raise UsageError(f"unknown activation {activation!r} of a convolution; choose none or silu")
    if u.ndim != 2 or u.shape[1] != cols or weight.shape != (cols, taps) or out.shape != u.shape:
        raise UsageError(f"a convolution of {u.shape} with {weight.shape} into {out.shape}, {cols} columns are kept")
    if bias is not None and bias.shape != (cols,):
        raise UsageError(f"a convolution of {cols} columns with a bias of {bias.shape}")
    _check_rows(u, out)
    check_states(states, len(u))


def check_scan(
    q: F32,
    k: F32,
    v: F32,
    decay: F32,
    step: F32,
    states: StateRows,
    out: F32,
    rule: ScanRule,
    turn: int,
    skip: F32 | None,
) -> None:
    """UsageError unless all fit each other."""
    layout, rows = states.layout, len(v)
    if rule not in ("delta", "sum"):
        raise UsageError(f"unknown rule {rule!r} of a scan; choose delta or sum")
    if v.shape != (rows, layout.heads, layout.value_dim) or out.shape != v.shape or not out.flags.c_contiguous:
        raise UsageError(f"a scan of {v.shape} values into {out.shape}; {layout.heads} heads are kept")
    keys = (rows, k.shape[1], layout.key_dim)
    if q.shape != keys or k.shape != keys or k.shape[1] < 1 or layout.heads % k.shape[1]:
        raise UsageError(f"a scan of {q.shape} queries and {k.shape} keys for {v.shape} values")
    if turn < 1 or k.shape[1] % turn:
        raise UsageError(f"a scan in which {turn} of {k.shape[1]} key heads take turns")
    factors = (rows, layout.heads)
    if decay.shape != factors or step.shape != factors or (skip is not None and skip.shape != (layout.heads,)):
        raise UsageError(f"a scan of {v.shape} values with {decay.shape} decays and {step.shape} steps")
    _check_rows(q, k, v)
    check_states(states, rows)


def check_heads(x: F32) -> None:
    """UsageError unless the heads of a row lie in one piece."""
    if x.ndim != 3:
        raise UsageError(f"{x.shape} are not rows of heads")
    _check_rows(x)


def check_steps(x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
    """UsageError unless all fit each other."""
    rows, heads = len(x), x.shape[1] * x.shape[2]
    fit = bias.shape == a.shape == (heads,) and decay.shape == step.shape == (rows, heads)
    if not fit or (gate is not None and (gate.shape != x.shape or gate.strides[1:] != x.strides[1:])):
        raise UsageError(f"steps of {x.shape} heads with {bias.shape} biases into {step.shape}")


def check_gated_norm(x: F32, gate: F32, weight: F32 | None, out: F32) -> None:
    """UsageError unless all fit each other."""
    rows, groups, cols = x.shape
    if out.shape != x.shape or gate.shape != (rows, groups * cols) or not x.flags.c_contiguous:
        raise UsageError(f"a gated norm of {x.shape} with gates {gate.shape} into {out.shape}")
    if weight is not None and weight.shape not in ((cols,), (groups, cols)):
        raise UsageError(f"a gated norm of {x.shape} with weights {weight.shape}")
    _check_rows(gate, out)


def _check_rows(*arrays: F32) -> None:
    """Each row in one piece, wherever the next one is."""
    for each in arrays:
        if len(each) and not each[0].flags.c_contiguous:
            raise UsageError(f"rows of {each.shape} must lie in one piece")
