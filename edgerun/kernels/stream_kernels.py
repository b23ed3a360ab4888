"""Between the products of models whose residual is several streams side by side, of which layers compute with one
(AltUp, Baykal et al. 2023), and whose gates let only what stands out through (Gemma 3n, Google 2025)."""

from __future__ import annotations

from typing import Any

from numba import float32, int64, njit

from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.simd import load_f32, load_i64


def weights_of(ops: Ops) -> Any:
    """asked (streams,) becomes tanh(asked * scale); weights (n,) = coefficients (n, streams) times that."""
    lanes, sigmoid = ops.lanes, sigmoid_of(ops)
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    plus, minus, zero, sum_floats, splat = ops.add, ops.sub, ops.zero_floats, ops.sum_floats, ops.splat

    @njit(forceinline=True)
    def weigh(asked: int, coefficients: int, scale: float, weights: int, n: int, streams: int) -> None:
        for i in range(0, streams, lanes):
            some, at = int64(streams - i), int64(asked + 4 * i)
            half = sigmoid(times(load(at, some), splat(float32(float32(2.0) * scale))))
            store(at, minus(plus(half, half), splat(float32(1.0))), some)
        for row in range(n):
            total = zero()
            for i in range(0, streams, lanes):
                some = int64(streams - i)
                coefficient = load(int64(coefficients + 4 * (row * streams + i)), some)
                total = fma(coefficient, load(int64(asked + 4 * i), some), total)
            store(int64(weights + 4 * row), splat(float32(sum_floats(total))), int64(1))

    return weigh


def build_mix_streams(ops: Ops) -> Any:
    """See `stream_abi.MixStreams`."""
    lanes, weigh = ops.lanes, weights_of(ops)
    load, store, fma, splat_load = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.splat_load

    def mix_streams(arguments: int, low: int, high: int) -> None:
        x, asked = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        coefficients, scale = load_i64(int64(arguments + 16)), load_f32(load_i64(int64(arguments + 24)))
        weights, out = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        streams, cols = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        for row in range(low, high):
            at, w = 4 * row * streams * cols, weights + 4 * row * streams * streams
            weigh(asked + 4 * row * streams, coefficients, scale, w, streams * streams, streams)
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                for to in range(streams):
                    v = load(int64(x + at + 4 * (to * cols + i)), n)
                    for of in range(streams):
                        share = splat_load(int64(w + 4 * (to * streams + of)))
                        v = fma(share, load(int64(x + at + 4 * (of * cols + i)), n), v)
                    store(int64(out + at + 4 * (to * cols + i)), v, n)

    return mix_streams, kernel_signature()


def build_correct_streams(ops: Ops) -> Any:
    """See `stream_abi.CorrectStreams`."""
    lanes, weigh = ops.lanes, weights_of(ops)
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    plus, minus, splat, splat_load = ops.add, ops.sub, ops.splat, ops.splat_load

    def correct_streams(arguments: int, low: int, high: int) -> None:
        x, result = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        asked, coefficients = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        scale, weights = load_f32(load_i64(int64(arguments + 32))), load_i64(int64(arguments + 40))
        out, factors = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        first, streams = load_i64(int64(arguments + 64)), load_i64(int64(arguments + 72))
        cols = load_i64(int64(arguments + 80))
        for row in range(low, high):
            at, mine, w = 4 * row * streams * cols, 4 * row * cols, weights + 4 * row * streams
            weigh(asked + 4 * row * streams, coefficients, scale, w, streams, streams)
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                news = minus(load(int64(result + mine + 4 * i), n), load(int64(x + at + 4 * i), n))
                for to in range(streams):
                    share, here = plus(splat_load(int64(w + 4 * to)), splat(float32(1.0))), at + 4 * (to * cols + i)
                    v = fma(share, news, load(int64(x + here), n))
                    store(int64(out + here), v, n)
                    if to == 0:
                        store(int64(first + mine + 4 * i), times(v, load(int64(factors + 4 * i), n)), n)

    return correct_streams, kernel_signature()


def build_match_norms(ops: Ops) -> Any:
    """See `stream_abi.MatchNorms`."""
    lanes = ops.lanes
    load, store, fma, times = ops.load_floats_masked, ops.store_floats_masked, ops.fma, ops.mul
    zero, sum_floats, splat = ops.zero_floats, ops.sum_floats, ops.splat

    @njit(forceinline=True)
    def squares(row: int, cols: int) -> float:
        total = zero()
        for i in range(0, cols, lanes):
            v = load(int64(row + 4 * i), int64(cols - i))
            total = fma(v, v, total)
        return float32(sum_floats(total))

    def match_norms(arguments: int, low: int, high: int) -> None:
        x, x_stride = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        each_stride, each = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        like, like_stride = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        cols = load_i64(int64(arguments + 48))
        for row in range(low, high):
            length = squares(like + row * like_stride, cols) ** float32(0.5)
            for index in range(each):
                at = x + row * x_stride + index * each_stride
                factor = splat(float32(length / squares(at, cols) ** float32(0.5)))
                for i in range(0, cols, lanes):
                    n = int64(cols - i)
                    store(int64(at + 4 * i), times(load(int64(at + 4 * i), n), factor), n)

    return match_norms, kernel_signature()


def build_above_mean(ops: Ops) -> Any:
    """See `stream_abi.AboveMean`."""
    lanes = ops.lanes
    load, store, fma = ops.load_floats_masked, ops.store_floats_masked, ops.fma
    plus, minus, maximum, within = ops.add, ops.sub, ops.maximum, ops.within
    zero, sum_floats, splat = ops.zero_floats, ops.sum_floats, ops.splat

    def above_mean(arguments: int, low: int, high: int) -> None:
        x, cols = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        deviations = load_f32(load_i64(int64(arguments + 16)))
        for row in range(low, high):
            at = x + row * cols * 4
            total = zero()
            for i in range(0, cols, lanes):
                total = plus(total, load(int64(at + 4 * i), int64(cols - i)))
            mean = float32(sum_floats(total) / float32(cols))
            total = zero()
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                v = within(minus(load(int64(at + 4 * i), n), splat(mean)), int64(0), n, float32(0.0))
                total = fma(v, v, total)
            deviation = (sum_floats(total) / float32(cols - 1)) ** float32(0.5)
            least = splat(float32(mean + deviations * deviation))
            for i in range(0, cols, lanes):
                n = int64(cols - i)
                store(int64(at + 4 * i), maximum(minus(load(int64(at + 4 * i), n), least), splat(float32(0.0))), n)

    return above_mean, kernel_signature()
