"""What lies between a layer's products: norms, rotation, gates, sums."""

from __future__ import annotations

import numpy as np

from edgerun.errors import UsageError
from edgerun.kernels.abi import Add, Affine, Combine, Copy, Gated, HeadGate, LayerNorm, RmsNorm, Rope
from edgerun.kernels.interface import F32, I32, Gate, GateKind, RopeKind
from edgerun.kernels.launcher import Launcher
from edgerun.kernels.memory import address, constants

GATED_GRAIN = 4  # rows
AFFINE_GRAIN = 16  # rows
_GATE_KINDS = {"silu": 0, "gelu": 1, "relu": 2, "relu2": 3, "oai": 4, "none": 7}
_HEAD_GATES: dict[GateKind, int] = {"sigmoid": 0, "softplus": 1}


def rms_norm(launcher: Launcher, x: F32, weight: F32, eps: float, out: F32) -> None:
    """See `interface.Kernels.rms_norm`."""
    cols = weight.shape[0]
    if x.shape[-1] != cols or out.shape != x.shape or not out.flags.c_contiguous:
        raise UsageError(f"rms_norm of {x.shape} with a weight of {cols} into {out.shape}")
    arguments = RmsNorm(address(x), address(weight), address(out), cols, constants(eps), _row_bytes(x))
    launcher.launch("rms_norm", arguments, x.size // cols, 8)


def layer_norm(launcher: Launcher, x: F32, weight: F32, bias: F32 | None, eps: float, out: F32) -> None:
    """See `interface.Kernels.layer_norm`."""
    cols = weight.shape[0]
    if x.shape[-1] != cols or out.shape != x.shape or (bias is not None and bias.shape != weight.shape):
        raise UsageError(f"layer_norm of {x.shape} with a weight of {cols} into {out.shape}")
    shift = 0 if bias is None else address(bias)
    arguments = LayerNorm(address(x), address(weight), shift, address(out), cols, constants(eps))
    launcher.launch("layer_norm", arguments, x.size // cols, 8)


def scale(launcher: Launcher, x: F32, factor: float) -> None:
    """See `interface.Kernels.scale`."""
    if not x.flags.c_contiguous:
        raise UsageError(f"cannot scale an array {x.shape} that is not contiguous")
    launcher.launch("affine", Affine(address(x), x.shape[-1], 0, constants(factor), 0), x.size // x.shape[-1], 16)


def affine(launcher: Launcher, x: F32, ids: I32 | None, factors: F32 | None, bias: F32 | None) -> None:
    """See `interface.Kernels.affine`."""
    arguments = affine_arguments(x, ids, factors, bias)
    launcher.launch("affine", arguments, len(x), AFFINE_GRAIN)


def affine_arguments(x: F32, ids: I32 | None, factors: F32 | None, bias: F32 | None) -> Affine:
    """Of a launch over all rows of x (rows, cols). UsageError for entries that there are not."""
    entries = 1 if ids is None or not len(ids) else int(ids.max()) + 1
    if (
        not x.flags.c_contiguous
        or (ids is not None and (ids.shape != (len(x),) or ids.dtype != np.int32 or (len(ids) and ids.min() < 0)))
        or (factors is not None and (factors.ndim != 1 or len(factors) < entries))
        or (bias is not None and (bias.shape[1:] != x.shape[1:] or len(bias) < entries or not bias.flags.c_contiguous))
    ):
        shapes = [None if each is None else each.shape for each in (ids, factors, bias)]
        raise UsageError(f"rows {x.shape} cannot be changed by entries, factors and biases {shapes}")
    return Affine(address(x), x.shape[1], *(0 if each is None else address(each) for each in (ids, factors, bias)))


def copy(launcher: Launcher, x: F32, out: F32) -> None:
    """See `interface.Kernels.copy`."""
    if x.ndim != 2 or x.shape != out.shape or x.strides[1] != 4 or out.strides[1] != 4:
        raise UsageError(f"cannot copy {x.shape} to {out.shape}")
    arguments = Copy(address(x), x.strides[0], address(out), out.strides[0], x.shape[1])
    launcher.launch("copy", arguments, len(x), 16)


def head_gate(launcher: Launcher, x: F32, gate: F32, kind: GateKind) -> None:
    """See `interface.Kernels.head_gate`."""
    heads, cols = x.shape
    if gate.shape not in ((heads, cols), (heads, 1)) or not x.flags.c_contiguous or kind not in _HEAD_GATES:
        raise UsageError(f"cannot gate {x.shape} with {gate.shape} by {kind!r}")
    one = int(gate.shape[1] == 1)
    arguments = HeadGate(address(x), address(gate), cols, _row_bytes(gate), one, _HEAD_GATES[kind])
    launcher.launch("head_gate", arguments, heads, 16)


def _row_bytes(x: F32) -> int:
    """From row to row of x, whose columns lie side by side: of one row, or of rows at one distance. UsageError for
    others."""
    if x.flags.c_contiguous:
        cols: int = x.shape[-1]
        return 4 * cols
    if x.ndim != 2 or x.strides[1] != 4:
        raise UsageError(f"an array of {x.shape} with strides of {x.strides} bytes has no rows at one distance")
    bytes_between: int = x.strides[0]
    return bytes_between


def add(launcher: Launcher, x: F32, y: F32) -> None:
    """See `interface.Kernels.add`."""
    cols = x.shape[-1]
    if y.shape not in (x.shape, (cols,)) or not y.flags.c_contiguous:
        raise UsageError(f"cannot add {y.shape} to {x.shape}")
    y_stride = 0 if y.ndim == 1 else 4 * cols
    launcher.launch("add", Add(address(x), address(y), cols, y_stride, _row_bytes(x)), x.size // cols, 16)


def rope(launcher: Launcher, x: F32, cos: F32, sin: F32, kind: RopeKind) -> None:
    """See `interface.Kernels.rope`."""
    tokens, heads, head_dim = x.shape
    half, neox = cos.shape[1], int(kind == "neox")
    launcher.launch("rope", Rope(address(x), heads, head_dim, address(cos), address(sin), half, neox), tokens, 4)


def gated(launcher: Launcher, gate: F32, up: F32 | None, activation: Gate, out: F32) -> None:
    """See `interface.Kernels.gated`."""
    launcher.launch("gated", gated_arguments(gate, up, activation, out), gate.shape[0], GATED_GRAIN)


def gated_arguments(gate: F32, up: F32 | None, activation: Gate, out: F32) -> Gated:
    """Of a launch over all rows of gate (T, F). UsageError for an unknown activation."""
    kind = _GATE_KINDS.get(activation)
    if kind is None:
        raise UsageError(f"unknown activation {activation!r}; choose one of {', '.join(_GATE_KINDS)}")
    other = 0 if up is None else address(up)
    return Gated(address(gate), other, address(out), gate.shape[1], kind)


def combine(launcher: Launcher, parts: F32, weights: F32, out: F32, *, add: bool) -> None:
    """See `interface.Kernels.combine`."""
    tokens, k = weights.shape
    weights = np.ascontiguousarray(weights, np.float32)
    arguments = Combine(address(parts), address(weights), address(out), k, out.shape[1], int(add))
    launcher.launch("combine", arguments, tokens, 4)
