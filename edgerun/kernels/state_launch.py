"""Recurrent layers: convolutions and scans over states, and what lies around them."""

from __future__ import annotations

from edgerun.kernels.interface import F32, ConvActivation, ScanRule
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants
from edgerun.kernels.state_abi import CausalConv, GatedNorm, Scan, ScanSteps, UnitHeads
from edgerun.kernels.state_checks import check_conv, check_gated_norm, check_heads, check_scan, check_steps
from edgerun.kernels.states import CONV_COLUMNS, SCAN_COLUMNS, StateRows

_WORK = 1 << 13  # numbers that one thread may as well go over alone


def causal_conv(
    launcher: Launcher,
    u: F32,
    weight: F32,
    bias: F32 | None,
    states: StateRows,
    out: F32,
    activation: ConvActivation,
) -> None:
    """See `interface.Kernels.causal_conv`."""
    check_conv(u, weight, bias, states, out, activation)
    rows, cols = u.shape
    launcher.keep(states.table)
    arguments = CausalConv(
        u=address(u),
        u_stride=u.strides[0],
        weight=address(weight),
        bias=0 if bias is None else address(bias),
        out=address(out),
        out_stride=out.strides[0],
        rows=rows,
        cols=cols,
        taps=weight.shape[1],
        silu=int(activation == "silu"),
        table=states.address,
        states_at=states.layout.conv_at,
    )
    launcher.launch("causal_conv", arguments, -(-cols // CONV_COLUMNS), max(1, _WORK // (4 * CONV_COLUMNS * rows)))


def scan(
    launcher: Launcher,
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
    rows, heads, value_dim = v.shape
    key_heads, key_dim = k.shape[1:]
    launcher.keep(states.table)
    arguments = Scan(
        q=address(q),
        q_stride=q.strides[0],
        k=address(k),
        k_stride=k.strides[0],
        v=address(v),
        v_stride=v.strides[0],
        decay=address(decay),
        step=address(step),
        skip=0 if skip is None else address(skip),
        out=address(out),
        rows=rows,
        heads=heads,
        key_heads=key_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        scale=constants(scale),
        delta=int(rule == "delta"),
        turn=turn,
        table=states.address,
        states_at=states.layout.matrices_at,
    )
    items = heads * -(-value_dim // SCAN_COLUMNS)
    launcher.launch("scan", arguments, items, max(1, _WORK // (SCAN_COLUMNS * key_dim * rows)))


def unit_heads(launcher: Launcher, x: F32, eps: float) -> None:
    """See `interface.Kernels.unit_heads`."""
    check_heads(x)
    rows, heads, dim = x.shape
    launcher.launch("unit_heads", UnitHeads(address(x), x.strides[0], heads, dim, constants(eps)), rows, 4)


def scan_steps(launcher: Launcher, x: F32, gate: F32 | None, bias: F32, a: F32, decay: F32, step: F32) -> None:
    """See `interface.Kernels.scan_steps`."""
    check_steps(x, gate, bias, a, decay, step)
    rows, groups, together = x.shape
    arguments = ScanSteps(
        x=address(x),
        gate=0 if gate is None else address(gate),
        stride=x.strides[0],
        gate_stride=0 if gate is None else gate.strides[0],
        together=together,
        group_stride=x.strides[1],
        heads=groups * together,
        bias=address(bias),
        a=address(a),
        decay=address(decay),
        step=address(step),
    )
    launcher.launch("scan_steps", arguments, rows, 16)


def gated_norm(
    launcher: Launcher, x: F32, gate: F32, weight: F32 | None, eps: float, out: F32, *, gate_first: bool
) -> None:
    """See `interface.Kernels.gated_norm`."""
    check_gated_norm(x, gate, weight, out)
    rows, groups, cols = x.shape
    arguments = GatedNorm(
        x=address(x),
        gate=address(gate),
        gate_stride=gate.strides[0],
        weight=0 if weight is None else address(weight),
        weight_stride=0 if weight is None or weight.ndim == 1 else 4 * cols,
        out=address(out),
        groups=groups,
        cols=cols,
        eps=constants(eps),
        gate_first=int(gate_first),
    )
    launcher.launch("gated_norm", arguments, rows * groups, max(1, _WORK // (2 * cols)))
