"""Which experts a token goes to: a few hundred numbers a row, but once a layer, where numpy takes as long as a tenth of
all the computing."""

from __future__ import annotations

from typing import Any

from numba import float32, int32, int64, njit

from edgerun.kernels.gate_kernels import softplus_of
from edgerun.kernels.layer_kernels import sigmoid_of
from edgerun.kernels.matmul_driver import kernel_signature
from edgerun.kernels.ops import Ops
from edgerun.kernels.routing import LEAST_SUM, ROUTER_KINDS
from edgerun.kernels.simd import load_f32, load_i64, load_u32, store_f32, store_i32

_SOFTMAX, _SIGMOID, _TOPK, _ROOT = (
    ROUTER_KINDS[kind] for kind in ("softmax", "sigmoid", "softmax_topk", "sqrt_softplus")
)
_NEVER = float("-inf")
_LEAST = float(LEAST_SUM)


def build_route(ops: Ops) -> Any:
    """See `abi.Route`. Work of a row: scores, what is chosen by, and the best of these so far (or, before, how good
    groups are)."""
    lanes = ops.lanes
    load, store, plus = ops.load_floats_masked, ops.store_floats_masked, ops.add
    sigmoid, softplus, softmax = sigmoid_of(ops), softplus_of(ops), _build_softmax(ops)

    @njit(forceinline=True)
    def score(x: int, n: int, kind: int, out: int) -> None:
        if kind == _SOFTMAX:
            softmax(x, n, out)
            return
        for i in range(0, n, lanes):
            v = load(int64(x + 4 * i), int64(n - i))
            if kind == _SIGMOID:
                v = sigmoid(v)
            if kind == _ROOT:
                v = softplus(v)
            store(int64(out + 4 * i), v, int64(n - i))
        if kind == _ROOT:
            for i in range(n):
                store_f32(int64(out + 4 * i), float32(load_f32(int64(out + 4 * i)) ** float32(0.5)))

    @njit(forceinline=True)
    def number(at: int) -> Any:
        """What is no number is worse than any."""
        v = load_f32(int64(at))
        return v if v == v else float32(_NEVER)

    @njit(forceinline=True)
    def close_groups(keys: int, n: int, groups: int, used: int, sums: int) -> None:
        """Keys of all but the `used` best groups become -inf; a group's two best keys say how good it is."""
        size = n // groups
        for g in range(groups):
            first, second = float32(_NEVER), float32(_NEVER)
            for i in range(g * size, (g + 1) * size):
                v = number(keys + 4 * i)
                if v > first:
                    second = first
                    first = v
                elif v > second:
                    second = v
            store_f32(int64(sums + 4 * g), float32(first + second) if size > 1 else first)
        for g in range(groups):
            own, better = load_f32(int64(sums + 4 * g)), 0
            for other in range(groups):
                v = load_f32(int64(sums + 4 * other))
                if v > own or (v == own and other < g):
                    better += 1
            if better >= used:
                for i in range(g * size, (g + 1) * size):
                    store_f32(int64(keys + 4 * i), float32(_NEVER))

    @njit(forceinline=True)
    def choose(keys: int, n: int, used: int, best: int, ids: int) -> None:
        """The best first, of equals the one with the lower number."""
        for i in range(n):
            v = number(keys + 4 * i)
            place = min(i, used)
            if place == used:
                place = used - 1
                if not v > load_f32(int64(best + 4 * place)):
                    continue
            while place > 0 and v > load_f32(int64(best + 4 * place - 4)):
                store_f32(int64(best + 4 * place), load_f32(int64(best + 4 * place - 4)))
                store_i32(int64(ids + 4 * place), int32(load_u32(int64(ids + 4 * place - 4))))
                place -= 1
            store_f32(int64(best + 4 * place), v)
            store_i32(int64(ids + 4 * place), int32(i))

    @njit(forceinline=True)
    def weigh(scores: int, ids: int, used: int, kind: int, renormalise: int, scale: Any, out: int) -> None:
        for k in range(used):
            store_f32(int64(out + 4 * k), load_f32(int64(scores + 4 * int64(load_u32(int64(ids + 4 * k))))))
        if kind == _TOPK:
            softmax(out, used, out)
        total = float32(1.0)
        if renormalise != 0:
            total = float32(0.0)
            for k in range(used):
                total = float32(total + load_f32(int64(out + 4 * k)))
            total = max(total, float32(_LEAST))
        for k in range(used):
            store_f32(int64(out + 4 * k), float32(float32(load_f32(int64(out + 4 * k)) / total) * scale))

    def route(arguments: int, low: int, high: int) -> None:
        logits, bias = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        ids, weights = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        work, n = load_i64(int64(arguments + 32)), load_i64(int64(arguments + 40))
        used, kind = load_i64(int64(arguments + 48)), load_i64(int64(arguments + 56))
        renormalise, scale = load_i64(int64(arguments + 64)), load_f32(load_i64(int64(arguments + 72)))
        groups, groups_used = load_i64(int64(arguments + 80)), load_i64(int64(arguments + 88))
        for row in range(low, high):
            scores = work + 12 * n * row
            keys, best, mine = scores + 4 * n, scores + 8 * n, ids + 4 * used * row
            score(logits + 4 * n * row, n, kind, scores)
            for i in range(0, n, lanes):
                v = load(int64(scores + 4 * i), int64(n - i))
                if bias != 0:
                    v = plus(v, load(int64(bias + 4 * i), int64(n - i)))
                store(int64(keys + 4 * i), v, int64(n - i))
            if groups > 1:
                close_groups(keys, n, groups, groups_used, best)
            choose(keys, n, used, best, mine)
            if weights != 0:
                weigh(scores, mine, used, kind, renormalise, scale, weights + 4 * used * row)

    return route, kernel_signature()


def _build_softmax(ops: Ops) -> Any:
    """softmax(x, n, out): of n floats; out may be x."""
    lanes = ops.lanes
    load, store, exp, minus = ops.load_floats_masked, ops.store_floats_masked, ops.exp, ops.sub
    plus, splat, within, maximum = ops.add, ops.splat, ops.within, ops.maximum
    zero, sum_floats, max_floats, div = ops.zero_floats, ops.sum_floats, ops.max_floats, ops.div

    @njit(forceinline=True)
    def softmax(x: int, n: int, out: int) -> None:
        top = splat(float32(_NEVER))
        for i in range(0, n, lanes):
            v = load(int64(x + 4 * i), int64(n - i))
            top = maximum(top, within(v, int64(0), int64(n - i), float32(_NEVER)))
        highest, total = splat(max_floats(top)), zero()
        for i in range(0, n, lanes):
            v = exp(minus(load(int64(x + 4 * i), int64(n - i)), highest))
            store(int64(out + 4 * i), v, int64(n - i))
            total = plus(total, within(v, int64(0), int64(n - i), float32(0.0)))
        whole = splat(sum_floats(total))
        for i in range(0, n, lanes):
            store(int64(out + 4 * i), div(load(int64(out + 4 * i), int64(n - i)), whole), int64(n - i))

    return softmax


def build_weigh(ops: Ops) -> Any:
    """See `abi.Weigh`."""
    lanes, load, fma, zero, sum_floats = ops.lanes, ops.load_floats_masked, ops.fma, ops.zero_floats, ops.sum_floats

    def weigh(arguments: int, low: int, high: int) -> None:
        x, weight = load_i64(int64(arguments)), load_i64(int64(arguments + 8))
        out, cols = load_i64(int64(arguments + 16)), load_i64(int64(arguments + 24))
        for row in range(low, high):
            total = zero()
            for i in range(0, cols, lanes):
                v = load(int64(x + 4 * (row * cols + i)), int64(cols - i))
                total = fma(v, load(int64(weight + 4 * i), int64(cols - i)), total)
            store_f32(int64(out + 4 * row), sum_floats(total))

    return weigh, kernel_signature()
