"""What stands between the products: norm, rotary embedding, gates, the sum over experts.

Arguments are int64 slots at an address; floats travel as the address of an f32. An item is a row (a token), unless
stated. Lengths need not be multiples of the lanes: the rest goes through masked loads and stores.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, load_i64, load_u32


def build_rms_norm(ops: Ops) -> Any:
    """0 x, 1 weight, 2 out, 3 columns, 4 &eps, 5 bytes from row to row in x. out = x / sqrt(mean(x^2) + eps) * weight;
    out may be x."""
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    zero, sum_floats, splat = ops.zero_floats, ops.sum_floats, ops.splat

    def rms_norm(arguments: int, low: int, high: int) -> None:
        x, weight = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        out, cols = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        eps, stride = load_f32(load_i64(int64(arguments + 32))), load_i64(int64(arguments + 40))
        for row in range(low, high):
            source, at = x + row * stride, row * cols * 4
            total = zero()
            for i in range(0, cols, lanes):
                v = load(int64(source + 4 * i), int64(cols - i))
                total = fma(v, v, total)
            factor = splat(float32(float32(1.0) / (sum_floats(total) / float32(cols) + eps) ** float32(0.5)))
            for i in range(0, cols, lanes):
                v = load(int64(source + 4 * i), int64(cols - i))
                w = load(int64(weight + 4 * i), int64(cols - i))
                store(int64(out + at + 4 * i), times(times(v, factor), w), int64(cols - i))

    return rms_norm, kernel_signature()


def build_layer_norm(ops: Ops) -> Any:
    """0 x, 1 weight, 2 bias, 3 out, 4 columns, 5 &eps: see `abi.LayerNorm`."""
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    plus, minus, zero, sum_floats, splat, within = (
        ops.add,
        ops.sub,
        ops.zero_floats,
        ops.sum_floats,
        ops.splat,
        ops.within,
    )

    def layer_norm(arguments: int, low: int, high: int) -> None:
        x, weight = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        bias, out = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        cols = load_i64(int64(arguments + 32))
        eps = load_f32(load_i64(int64(arguments + 40)))
        for row in range(low, high):
            at = row * cols * 4
            total = zero()
            for i in range(0, cols, lanes):
                total = plus(total, load(int64(x + at + 4 * i), int64(cols - i)))
            mean = splat(float32(sum_floats(total) / float32(cols)))
            total = zero()
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                v = within(minus(load(int64(x + at + 4 * i), n), mean), int64(0), n, float32(0.0))
                total = fma(v, v, total)
            factor = splat(float32(float32(1.0) / (sum_floats(total) / float32(cols) + eps) ** float32(0.5)))
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                v = minus(load(int64(x + at + 4 * i), n), mean)
                v = times(times(v, factor), load(int64(weight + 4 * i), n))
                if bias != 0:
                    v = plus(v, load(int64(bias + 4 * i), n))
                store(int64(out + at + 4 * i), v, n)

    return layer_norm, kernel_signature()


def build_affine(ops: Ops) -> Any:
    """0 x, 1 columns, 2 ids, 3 scale, 4 bias: see `abi.Affine`."""
    lanes = ops.lanes
    load, store, times, plus = ops.load_floats_masked, ops.store_floats_masked, ops.mul, ops.add
    splat, splat_load = ops.splat, ops.splat_load

    def affine(arguments: int, low: int, high: int) -> None:
        x, cols = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        ids, scale = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        bias = load_i64(int64(arguments + 32))
        for row in range(low, high):
            entry = int64(0)
            if ids != 0:
                entry = int64(load_u32(int64(ids + 4 * row)))
            factor = splat(float32(1.0))
            if scale != 0:
                factor = splat_load(int64(scale + 4 * entry))
            for i in range(0, cols, lanes):
                n, at = int64(cols - i), int64(x + (row * cols + i) * 4)
                v = times(load(at, n), factor)
                if bias != 0:
                    v = plus(v, load(int64(bias + (entry * cols + i) * 4), n))
                store(at, v, n)

    return affine, kernel_signature()


def build_copy(ops: Ops) -> Any:
    """See `abi.Copy`."""
    lanes, load, store = ops.lanes, ops.load_floats_masked, ops.store_floats_masked

    def copy(arguments: int, low: int, high: int) -> None:
        x, x_stride = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        out, out_stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        cols = load_i64(int64(arguments + 32))
        for row in range(low, high):
            source, target = x + row * x_stride, out + row * out_stride
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                store(int64(target + 4 * i), load(int64(source + 4 * i), n), n)

    return copy, kernel_signature()


def build_rope(ops: Ops) -> Any:
    """0 x, 1 heads, 2 head_dim, 3 cos, 4 sin, 5 rot / 2, 6 neox. Rotates in place."""
    lanes = ops.lanes
    load, store, times = ops.load_floats_masked, ops.store_floats_masked, ops.mul
    plus, minus = ops.add, ops.sub
    swap_pairs, to_pairs, negate_first = ops.swap_pairs, ops.to_pairs, ops.negate_first

    @njit(forceinline=True)
    def halves(x: int, c: int, s: int, half: int) -> None:
        """Pairs (i, i + half)."""
        for i in range(0, half, lanes):
            n, first, second = int64(half - i), int64(x + 4 * i), int64(x + 4 * (half + i))
            a, b = load(first, n), load(second, n)
            ci, si = load(int64(c + 4 * i), n), load(int64(s + 4 * i), n)
            store(first, minus(times(a, ci), times(b, si)), n)
            store(second, plus(times(a, si), times(b, ci)), n)

    @njit(forceinline=True)
    def neighbours(x: int, c: int, s: int, half: int) -> None:
        """Pairs (2 i, 2 i + 1)."""
        for i in range(0, 2 * half, lanes):
            n, at = int64(2 * half - i), int64(x + 4 * i)
            pairs = int64(min(lanes // 2, half - i // 2))
            v = load(at, n)
            ci, si = to_pairs(load(int64(c + 2 * i), pairs)), to_pairs(load(int64(s + 2 * i), pairs))
            store(at, plus(times(v, ci), times(swap_pairs(v), negate_first(si))), n)

    def rope(arguments: int, low: int, high: int) -> None:
        x, heads = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        dim, cos = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        sin, half = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        neox = load_i64(int64(arguments + 48))
        for token in range(low, high):
            c, s = cos + token * half * 4, sin + token * half * 4
            for head in range(heads):
                p = x + (token * heads + head) * dim * 4
                if neox != 0:
                    halves(p, c, s, half)
                else:
                    neighbours(p, c, s, half)

    return rope, kernel_signature()


def sigmoid_of(ops: Ops) -> Any:
    """1 / (1 + e^-x), over lanes."""
    splat, plus, minus, div, exp = ops.splat, ops.add, ops.sub, ops.div, ops.exp

    @njit(forceinline=True)
    def sigmoid(x: Any) -> Any:
        one = splat(float32(1.0))
        return div(one, plus(one, exp(minus(splat(float32(0.0)), x))))

    return sigmoid


def softplus_of(ops: Ops) -> Any:
    """log(1 + e^x), over lanes: max(x, 0) + log(1 + e), e = e^-|x|, of which the logarithm is 2 artanh(e / (2 + e))."""
    splat, plus, minus, times, div = ops.splat, ops.add, ops.sub, ops.mul, ops.div
    exp, fma, maximum = ops.exp, ops.fma, ops.maximum

    @njit(forceinline=True)
    def softplus(x: Any) -> Any:
        zero = splat(float32(0.0))
        e = exp(minus(zero, maximum(x, minus(zero, x))))
        s = div(e, plus(splat(float32(2.0)), e))  # at most a third: seven terms are exact to a bit
        square = times(s, s)
        series = splat(float32(1 / 13))
        series = fma(series, square, splat(float32(1 / 11)))
        series = fma(series, square, splat(float32(1 / 9)))
        series = fma(series, square, splat(float32(1 / 7)))
        series = fma(series, square, splat(float32(1 / 5)))
        series = fma(series, square, splat(float32(1 / 3)))
        series = fma(series, square, splat(float32(1.0)))
        return fma(times(splat(float32(2.0)), s), series, maximum(x, zero))

    return softplus


def build_gated(ops: Ops) -> Any:
    """0 gate, 1 up, 2 out, 3 columns, 4 kind: see `abi.Gated`."""
    lanes = ops.lanes
    load, store, times, fma = ops.load_floats_masked, ops.store_floats_masked, ops.mul, ops.fma
    splat, maximum, minimum, plus, sigmoid = ops.splat, ops.maximum, ops.minimum, ops.add, sigmoid_of(ops)

    @njit(forceinline=True)
    def activate(x: Any, kind: int) -> Any:
        if kind == 0:
            return times(x, sigmoid(x))
        if kind == 1:  # 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
            cube = times(times(x, x), x)
            inner = times(fma(cube, splat(float32(0.044715)), x), splat(float32(2 * 0.7978845608028654)))
            return times(x, sigmoid(inner))
        if kind == 4:
            x = minimum(x, splat(float32(7.0)))
            return times(x, sigmoid(times(x, splat(float32(1.702)))))
        if kind == 7:
            return x
        x = maximum(x, splat(float32(0.0)))
        if kind == 2:
            return x
        return times(x, x)

    def gated(arguments: int, low: int, high: int) -> None:
        gate, up = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        out, cols = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        kind = load_i64(int64(arguments + 32))
        for row in range(low, high):
            at = row * cols * 4
            for i in range(0, cols, lanes):
                n = cols - i
                value = activate(load(int64(gate + at + 4 * i), int64(n)), kind)
                if up != 0:
                    other = load(int64(up + at + 4 * i), int64(n))
                    if kind == 4:
                        other = maximum(minimum(other, splat(float32(7.0))), splat(float32(-7.0)))
                        other = plus(other, splat(float32(1.0)))
                    value = times(value, other)
                store(int64(out + at + 4 * i), value, int64(n))

    return gated, kernel_signature()


def build_head_gate(ops: Ops) -> Any:
    """See `abi.HeadGate`."""
    lanes = ops.lanes
    load, store, times, splat_load = ops.load_floats_masked, ops.store_floats_masked, ops.mul, ops.splat_load
    sigmoid, softplus = sigmoid_of(ops), softplus_of(ops)

    def head_gate(arguments: int, low: int, high: int) -> None:
        x, gate = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        cols, stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        one, kind = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        for head in range(low, high):
            at, g = x + head * cols * 4, gate + head * stride
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                value = splat_load(int64(g)) if one != 0 else load(int64(g + 4 * i), n)
                factor = softplus(value) if kind == 1 else sigmoid(value)
                store(int64(at + 4 * i), times(load(int64(at + 4 * i), n), factor), n)

    return head_gate, kernel_signature()


def build_combine(ops: Ops) -> Any:
    """0 parts (T * k, d), 1 weights (T, k), 2 out (T, d), 3 k, 4 d, 5 add. Summed in the order of k."""
    lanes = ops.lanes
    load, store, fma, zero, splat_load = (
        ops.load_floats_masked,
        ops.store_floats_masked,
        ops.fma,
        ops.zero_floats,
        ops.splat_load,
    )

    def combine(arguments: int, low: int, high: int) -> None:
        parts, weights = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        out, k = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        cols, add = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        for row in range(low, high):
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                target = int64(out + (row * cols + i) * 4)
                total = load(target, n) if add != 0 else zero()
                for slot in range(row * k, row * k + k):
                    part = load(int64(parts + (slot * cols + i) * 4), n)
                    total = fma(splat_load(int64(weights + slot * 4)), part, total)
                store(target, total, n)

    return combine, kernel_signature()


def build_add(ops: Ops) -> Any:
    """See `abi.Add`."""
    lanes = ops.lanes
    load, store, plus = ops.load_floats_masked, ops.store_floats_masked, ops.add

    def add(arguments: int, low: int, high: int) -> None:
        x, y = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        cols, stride = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        x_stride = load_i64(int64(arguments + 32))
        for row in range(low, high):
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                at = int64(x + row * x_stride + 4 * i)
                store(at, plus(load(at, n), load(int64(y + row * stride + 4 * i), n)), n)

    return add, kernel_signature()
