"""What lies between a recurrent layer's products and its scan: heads of length one, decays and steps, a gated norm."""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, load_i64

_ODD = (1 / 15, 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3)  # of the area tangent's series


def softplus_of(ops: Ops) -> Any:
    """log(1 + e^x), over lanes, as exactly where it is small: max(x, 0) + log(1 + e^-|x|), whose logarithm is twice the
    area tangent of y / (2 + y), at most 1/3."""
    splat, plus, minus, times, div = ops.splat, ops.add, ops.sub, ops.mul, ops.div
    fma, exp, maximum, magnitude = ops.fma, ops.exp, ops.maximum, ops.magnitude
    f15, f13, f11, f9, f7, f5, f3 = _ODD

    @njit(forceinline=True)
    def softplus(x: Any) -> Any:
        zero = splat(float32(0.0))
        y = exp(minus(zero, magnitude(x)))
        s = div(y, plus(splat(float32(2.0)), y))
        square = times(s, s)
        series = fma(splat(float32(f15)), square, splat(float32(f13)))
        series = fma(series, square, splat(float32(f11)))
        series = fma(series, square, splat(float32(f9)))
        series = fma(series, square, splat(float32(f7)))
        series = fma(series, square, splat(float32(f5)))
        series = fma(series, square, splat(float32(f3)))
        tangent = fma(times(series, square), s, s)
        return plus(maximum(x, zero), plus(tangent, tangent))

    return softplus


def build_unit_heads(ops: Ops) -> Any:
    """See `state_abi.UnitHeads`."""
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    zero, sum_floats, splat = ops.zero_floats, ops.sum_floats, ops.splat

    def unit_heads(arguments: int, low: int, high: int) -> None:
        x, stride = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        heads, dim = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        eps = load_f32(load_i64(int64(arguments + 32)))
        for row in range(low, high):
            for head in range(heads):
                at = x + row * stride + 4 * head * dim
                total = zero()
                for i in range(0, dim, lanes):
                    v = load(int64(at + 4 * i), int64(dim - i))
                    total = fma(v, v, total)
                factor = splat(float32(float32(1.0) / (sum_floats(total) + eps) ** float32(0.5)))
                for i in range(0, dim, lanes):
                    v = load(int64(at + 4 * i), int64(dim - i))
                    store(int64(at + 4 * i), times(v, factor), int64(dim - i))

    return unit_heads, kernel_signature()


def build_scan_steps(ops: Ops) -> Any:
    """See `state_abi.ScanSteps`."""
    lanes, sigmoid, softplus = ops.lanes, sigmoid_of(ops), softplus_of(ops)
    load, store, plus, times, exp = ops.load_floats_masked, ops.store_floats_masked, ops.add, ops.mul, ops.exp

    def scan_steps(arguments: int, low: int, high: int) -> None:
        x, gate = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        stride, gate_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        together, group_stride = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        heads, bias = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        a, decay = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        step = load_i64(int64(arguments + 80))
        for row in range(low, high):
            for group in range(heads // together):
                for i in range(0, together, lanes):
                    n, head = int64(together - i), 4 * (group * together + i)
                    here, to = group * group_stride + 4 * i, 4 * row * heads + head
                    s = softplus(plus(load(int64(x + row * stride + here), n), load(int64(bias + head), n)))
                    store(int64(decay + to), exp(times(s, load(int64(a + head), n))), n)
                    if gate != 0:
                        s = sigmoid(load(int64(gate + row * gate_stride + here), n))
                    store(int64(step + to), s, n)

    return scan_steps, kernel_signature()


def build_gated_norm(ops: Ops) -> Any:
    """See `state_abi.GatedNorm`."""
    lanes, sigmoid = ops.lanes, sigmoid_of(ops)
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    zero, sum_floats, splat = ops.zero_floats, ops.sum_floats, ops.splat

    @njit(forceinline=True)
    def silu(x: Any) -> Any:
        return times(x, sigmoid(x))

    def gated_norm(arguments: int, low: int, high: int) -> None:
        x, gate = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        gate_stride, weight = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        weight_stride, out = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        groups, cols = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        eps, gate_first = load_f32(load_i64(int64(arguments + 64))), load_i64(int64(arguments + 72))
        for item in range(low, high):
            row, group = item // groups, item % groups
            values, results = x + 4 * item * cols, out + 4 * item * cols
            gates, weights = gate + row * gate_stride + 4 * group * cols, weight + group * weight_stride
            total = zero()
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                v = load(int64(values + 4 * i), n)
                if gate_first != 0:
                    v = times(v, silu(load(int64(gates + 4 * i), n)))
                store(int64(results + 4 * i), v, n)
                total = fma(v, v, total)
            factor = splat(float32(float32(1.0) / (sum_floats(total) / float32(cols) + eps) ** float32(0.5)))
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                v = load(int64(results + 4 * i), n)
                if weight != 0:
                    v = times(times(v, factor), load(int64(weights + 4 * i), n))
                if gate_first == 0:
                    v = times(v, silu(load(int64(gates + 4 * i), n)))
                store(int64(results + 4 * i), v, n)

    return gated_norm, kernel_signature()
